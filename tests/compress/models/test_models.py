from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compress.models import MODELS, ModelSpec, Output, image_shape, parameter_count
from compress.models.base import Init, initialise
from compress.models.mlp import MLPSpec
from compress.models.mnist_cnn import MnistCNN, MnistCNNSpec
from compress.models.resnet import ResNetSpec
from compress.models.small_cnn import SmallCNNSpec
from export.graph import InputSignature

MNIST = (1, 28, 28)
KINDS = pytest.mark.parametrize(
    "spec",
    [
        MLPSpec(hidden=(20, 12)),
        MnistCNNSpec(),
        SmallCNNSpec(widths=(4, 6)),
        ResNetSpec(depth=6, widths=(4, 6)),
        ResNetSpec(depth=10, widths=(6, 4), shortcut="projection"),
    ],
)


def images(shape: tuple[int, int, int], rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))


def signature_of(shape: tuple[int, int, int]) -> InputSignature:
    """Return the signature of images of `shape` (channels, H, W)."""
    return InputSignature(shape, layout="NCHW")


def built(spec: ModelSpec, shape: tuple[int, int, int] = (3, 14, 12), outputs: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spec.build(signature=signature_of(shape), outputs=outputs)


def test_every_kind_in_the_table_has_its_own_name() -> None:
    assert {name: spec.kind for name, spec in MODELS.items()} == {name: name for name in MODELS}


# Sizes


@pytest.mark.parametrize(
    ("spec", "shape", "outputs", "expected"),
    [
        (
            MnistCNNSpec(),
            MNIST,
            10,
            (9 * 1 * 32 + 32) + (9 * 32 * 64 + 64) + (64 * 5 * 5 * 128 + 128) + (128 * 10 + 10),
        ),
        (MLPSpec(hidden=(784, 784)), MNIST, 10, 2 * (784 * 784 + 784) + (784 * 10 + 10)),
        (MLPSpec(hidden=()), (3, 4, 5), 7, 60 * 7 + 7),
        (
            SmallCNNSpec(widths=(16, 32, 64)),
            MNIST,
            10,
            9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 10 + 10,
        ),
        (SmallCNNSpec(widths=(8,)), (3, 1, 1), 2, 9 * 3 * 8 + 2 * 8 + 8 * 2 + 2),
        # He et al. 2016, table 6: ResNet-20 0.27M, ResNet-32 0.46M, ResNet-56 0.85M, ResNet-110 1.7M.
        (ResNetSpec(depth=20), (3, 32, 32), 10, 269_722),
        (ResNetSpec(depth=32), (3, 32, 32), 10, 464_154),
        (ResNetSpec(depth=56), (3, 32, 32), 10, 853_018),
        (
            ResNetSpec(depth=6, widths=(4, 6), shortcut="projection"),
            (3, 8, 8),
            2,
            9 * (3 * 4 + 2 * 4 * 4 + 4 * 6 + 6 * 6) + 4 * 6 + 2 * (4 + 2 * 4 + 2 * 6 + 6) + 6 * 2 + 2,
        ),
    ],
)
def test_parameter_count_by_hand(spec: ModelSpec, shape: tuple[int, int, int], outputs: int, expected: int) -> None:
    assert parameter_count(spec, signature=signature_of(shape), outputs=outputs) == expected
    model = built(spec, shape, outputs)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


def test_parameter_count_allocates_nothing_and_draws_nothing() -> None:
    devices: set[str] = set()

    class Watched(MnistCNNSpec):
        def build(self, *, signature: InputSignature, outputs: int) -> MnistCNN:
            model = super().build(signature=signature, outputs=outputs)
            devices.update(parameter.device.type for parameter in model.parameters())
            return model

    before = torch.get_rng_state()
    for init in ("glorot", "he", "torch"):
        parameter_count(Watched(init=init), signature=signature_of(MNIST), outputs=10)
    assert devices == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


# Outputs


@KINDS
@pytest.mark.parametrize("rows", [1, 3])
def test_output_has_the_promised_shapes(spec: ModelSpec, rows: int) -> None:
    model = built(spec, outputs=8).eval()
    output = model(images((3, 14, 12), rows))
    assert isinstance(output, Output)
    assert output.logits.shape == (rows, 8)
    assert output.embedding.shape == (rows, model.classifier.in_features)
    assert len(output.features) == len(model.feature_names)
    assert len(set(model.feature_names)) == len(model.feature_names)
    assert all(feature.shape[0] == rows for feature in output.features)


@KINDS
def test_logits_follow_from_every_feature_map(spec: ModelSpec) -> None:
    model = built(spec).eval()
    output = model(images((3, 14, 12)))
    assert output.features
    for i, feature in enumerate(output.features):
        assert torch.equal(model.from_feature(feature, i), output.logits)
        assert not torch.equal(model.from_feature(feature + 1, i), output.logits)


@KINDS
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_the_classifier_of_the_embedding(spec: ModelSpec, training: bool) -> None:
    model = built(spec).train(training)
    output = model(images((3, 14, 12)))
    expected = output.embedding @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(output.logits, expected)


@pytest.mark.parametrize(
    ("spec", "shape", "names", "shapes"),
    [
        (MLPSpec(hidden=(20, 12)), (3, 14, 12), ("hidden1", "hidden2"), [(2, 20), (2, 12)]),
        (MnistCNNSpec(), MNIST, ("conv1", "conv2"), [(2, 32, 13, 13), (2, 64, 5, 5)]),
        (
            SmallCNNSpec(widths=(4, 6, 5)),
            (3, 14, 12),
            ("stage1", "stage2", "stage3"),
            [(2, 4, 14, 12), (2, 6, 7, 6), (2, 5, 3, 3)],
        ),
        (
            ResNetSpec(depth=8, widths=(4, 4, 6)),
            (3, 14, 11),
            ("stage1", "stage2", "stage3"),
            [(2, 4, 14, 11), (2, 4, 7, 6), (2, 6, 4, 3)],
        ),
    ],
)
def test_features_are_the_stage_maps_in_depth_order(
    spec: ModelSpec, shape: tuple[int, int, int], names: tuple[str, ...], shapes: list[tuple[int, ...]]
) -> None:
    model = built(spec, shape).eval()
    output = model(images(shape, 2))
    assert model.feature_names == names
    assert [tuple(feature.shape) for feature in output.features] == shapes
    assert all((feature >= 0).all() for feature in output.features)  # after ReLU


def test_mlp_embedding_is_the_last_hidden_layer() -> None:
    output = built(MLPSpec(hidden=(20, 12)))(images((3, 14, 12)))
    assert output.embedding is output.features[-1]


def test_mlp_without_hidden_layers_is_a_linear_classifier() -> None:
    model, x = built(MLPSpec(hidden=())), images((3, 14, 12))
    output = model(x)
    assert torch.equal(output.embedding, x.flatten(1))
    assert output.features == ()


def test_small_cnn_embedding_is_the_mean_over_positions() -> None:
    output = built(SmallCNNSpec(widths=(4, 6))).eval()(images((3, 14, 12)))
    torch.testing.assert_close(output.embedding, output.features[-1].mean(dim=(2, 3)))


@pytest.mark.parametrize("spec", [MLPSpec(hidden=(50,), dropout=0.5), MnistCNNSpec(dropout=0.5)])
def test_dropout_works_in_training_only(spec: ModelSpec) -> None:
    model, x = built(spec), images((3, 14, 12))
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


@KINDS
def test_every_parameter_gets_a_gradient(spec: ModelSpec) -> None:
    model = built(spec)
    model(images((3, 14, 12), 8)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


# Initialisation


@KINDS
@pytest.mark.parametrize("init", ["glorot", "he", "torch"])
def test_the_same_seed_gives_the_same_weights(spec: ModelSpec, init: Init) -> None:
    spec = spec.model_copy(update={"init": init})
    first, again, other = (built(spec, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.Linear(300, 200), nn.Linear(40, 30, bias=False))


# fan_in, fan_out of the layers above that are initialised
FANS = {0: (8 * 9, 32 * 9), 2: (300, 200), 3: (40, 30)}


def test_glorot_is_uniform_within_its_bound() -> None:
    model = layers()
    initialise(model, "glorot")
    for index, (fan_in, fan_out) in FANS.items():
        bound = math.sqrt(6 / (fan_in + fan_out))
        weight = model[index].weight
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound
        assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.1)


def test_he_is_normal_with_variance_two_over_fan_in() -> None:
    model = layers()
    initialise(model, "he")
    for index, (fan_in, _) in FANS.items():
        weight = model[index].weight
        assert weight.var().item() == pytest.approx(2 / fan_in, rel=0.1)
        assert weight.mean().item() == pytest.approx(0, abs=0.1 * math.sqrt(2 / fan_in))
        assert weight.abs().max() > 2.5 * math.sqrt(2 / fan_in)  # farther out than any uniform of this variance


@pytest.mark.parametrize("init", ["glorot", "he"])
def test_biases_start_at_zero_and_norms_stay(init: Init) -> None:
    model = layers()
    initialise(model, init)
    assert model[0].bias.abs().max() == 0
    assert model[2].bias.abs().max() == 0
    assert torch.equal(model[1].weight, torch.ones(32))


def test_torch_leaves_the_weights_as_they_are() -> None:
    model = layers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    initialise(model, "torch")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("spec", "init"), [(MLPSpec(), "torch"), (MnistCNNSpec(), "glorot"), (SmallCNNSpec(), "he")])
def test_default_initialisation(spec: ModelSpec, init: Init) -> None:
    assert spec.init == init
    explicit = spec.model_copy(update={"init": init})
    a, b = (built(choice, MNIST).state_dict() for choice in (spec, explicit))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_recipes_choice_of_init_reaches_the_weights() -> None:
    glorot = built(MLPSpec(hidden=(64,), init="glorot"))
    assert glorot.hidden[0].bias.abs().max() == 0
    assert built(MLPSpec(hidden=(64,), init="torch")).hidden[0].bias.abs().max() > 0


# Images that are too small


@pytest.mark.parametrize("shape", [(1, 9, 28), (1, 28, 9), (3, 1, 1)])
def test_mnist_cnn_refuses_a_small_image(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"at least 10×10, came {shape[1]}×{shape[2]}"):
        built(MnistCNNSpec(), shape)


def test_mnist_cnn_takes_the_smallest_image_it_names() -> None:
    assert built(MnistCNNSpec(), (1, 10, 10)).eval()(images((1, 10, 10))).logits.shape == (3, 10)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7)])
def test_small_cnn_refuses_a_small_image(shape: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"4 stages needs images of at least 8 pixels a side, came {shape[1]}×{shape[2]}"
    ):
        built(SmallCNNSpec(widths=(2, 2, 2, 2)), shape)


def test_small_cnn_takes_the_smallest_image_it_names() -> None:
    output = built(SmallCNNSpec(widths=(2, 2, 2, 2)), (1, 8, 8)).eval()(images((1, 8, 8)))
    assert output.features[-1].shape == (3, 2, 1, 1)


# Options


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (MLPSpec, {"hidden": (0,)}),
        (MLPSpec, {"hidden": (2.5,)}),
        (MLPSpec, {"dropout": 1.0}),
        (MnistCNNSpec, {"dropout": -0.1}),
        (MnistCNNSpec, {"init": "xavier"}),
        (SmallCNNSpec, {"widths": ()}),
        (SmallCNNSpec, {"widths": (0,)}),
        (SmallCNNSpec, {"depth": 3}),
    ],
)
def test_options_out_of_range_are_refused(spec: type[ModelSpec], options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**options)


@pytest.mark.parametrize(("layout", "shape"), [("NHWC", (28, 30, 3)), ("NCHW", (3, 28, 30))])
def test_image_shape_is_channels_first_whatever_the_layout(layout: str, shape: tuple[int, ...]) -> None:
    assert image_shape(InputSignature(shape=shape, layout=layout)) == (3, 28, 30)
