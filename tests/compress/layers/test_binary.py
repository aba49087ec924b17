from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.layers import BinaryConv2d, BinaryLinear, LayerForm, sign
from compress.layers.form import Scale, Weights

SCALES: tuple[Scale, ...] = (
    "none", "mean_abs", "xnor_k", "learned", "learned_dense", "learned_map", "learned_factors"
)  # fmt: skip
FORMS = [
    *(LayerForm(scale=scale) for scale in SCALES),
    LayerForm(weights="real"),
    LayerForm(weights="real", scale="learned"),
    LayerForm(weights="real", activations="real", scale="xnor_k"),
    LayerForm(weights="ternary", ste="tanh"),
    LayerForm(weights="int2", activations="int2", scale="learned"),
    LayerForm(weights="int4", activations="int4"),
    LayerForm(weights="int8", activations="int8"),
    LayerForm(weights="binary", activations="int4"),
]


def convolution(form: LayerForm, *, norm: bool = False, **options: Any) -> BinaryConv2d:
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 6, 3, **{"padding": 1, "size": (5, 7), **options}, form=form, norm=norm)
    for name, parameter in layer.named_parameters():
        if name != "weight":
            nn.init.uniform_(parameter, 0.5, 2)
    return layer


def trained(layer: BinaryConv2d, x: Tensor) -> BinaryConv2d:
    """Return the layer with statistics of x, in evaluation mode."""
    if layer.norm is not None:
        layer.norm.momentum = None  # type: ignore[assignment]
    layer.train()(x)
    return layer.eval()


def images(seed: int = 1) -> Tensor:
    return torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Return the sign convolution in float64, where a tap outside adds nothing."""
    return F.conv2d(sign(x).double(), sign(weight).double(), **options)


def test_the_integer_part_is_a_sign_convolution() -> None:
    layer = convolution(LayerForm(scale="none")).eval()
    x = images()
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, float("nan")])
    expected = by_hand(x, layer.weight, padding=1)
    assert torch.equal(layer(x).double(), expected)
    assert torch.equal(expected, expected.round())


@pytest.mark.parametrize("options", [
    {"stride": 2, "padding": 1},
    {"padding": (0, 2), "dilation": 2},
    {"groups": 2, "padding": 1},
    {"kernel": 1, "padding": 0},
    {"kernel": (2, 5), "padding": (1, 2)},
], ids=str)  # fmt: skip
def test_strides_dilations_groups_and_kernels(options: dict[str, Any]) -> None:
    options = dict(options)
    kernel = options.pop("kernel", 3)
    layer = BinaryConv2d(4, 6, kernel, form=LayerForm(scale="none"), **options).eval()
    x = images()
    assert torch.equal(layer(x).double(), by_hand(x, layer.weight, **options))


@pytest.mark.parametrize("value", [1, -1])
def test_what_stands_outside_the_image_can_be_a_sign(value: int) -> None:
    layer = convolution(LayerForm(scale="none"), pad_value=value).eval()
    x = images()
    padded = F.pad(sign(x), (1, 1, 1, 1), value=float(value))
    assert torch.equal(layer(x), F.conv2d(padded, sign(layer.weight)))
    with pytest.raises(ValueError, match="pad_value is 2"):
        convolution(LayerForm(), pad_value=2)


def test_mean_abs_is_the_mean_of_the_latent_weights_of_a_channel() -> None:
    layer = convolution(LayerForm(scale="mean_abs")).eval()
    scale = layer.weight.abs().mean((1, 2, 3))
    found = layer(images()) / by_hand(images(), layer.weight, padding=1)
    for i in range(6):
        values = found[:, i][found[:, i].isfinite()]
        assert torch.allclose(values, scale[i].double(), rtol=1e-6)


def test_k_is_the_mean_of_the_inputs_sizes_under_the_window() -> None:
    layer = convolution(LayerForm(scale="xnor_k")).eval()
    x = images()
    size = F.pad(x.abs().mean(1), (1, 1, 1, 1))
    k = torch.stack([
        torch.stack([size[:, i : i + 3, j : j + 3].mean((1, 2)) for j in range(7)], 1) for i in range(5)
    ], 1)  # fmt: skip
    expected = by_hand(x, layer.weight, padding=1) * k[:, None] * layer.weight.abs().mean((1, 2, 3))[:, None, None]
    assert torch.allclose(layer(x).double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "shapes"), [
    ("learned", {"scale_channel": (6,)}),
    ("learned_dense", {"scale_channel": (6,), "scale_positions": (6, 3, 4)}),
    ("learned_map", {"scale_channel": (6,), "scale_positions": (1, 3, 4)}),
    ("learned_factors", {"scale_channel": (6,), "scale_height": (3,), "scale_width": (4,)}),
])  # fmt: skip
def test_learned_scales_are_the_outer_product_of_their_factors(
    scale: Scale, shapes: dict[str, tuple[int, ...]]
) -> None:
    layer = convolution(LayerForm(scale=scale), stride=2).eval()  # 5×7 become 3×4
    assert {n: tuple(p.shape) for n, p in layer.named_parameters() if n != "weight"} == shapes
    factor = layer.scale_channel[:, None, None].expand(6, 3, 4)
    if scale == "learned_factors":
        factor = torch.einsum("c,h,w->chw", layer.scale_channel, layer.scale_height, layer.scale_width)
    elif scale != "learned":
        factor = factor * layer.scale_positions
    expected = by_hand(images(), layer.weight, padding=1, stride=2) * factor
    assert torch.allclose(layer(images()).double(), expected.double(), rtol=1e-5)
    layer(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in layer.named_parameters() if n != "weight")


def test_scales_over_positions_need_the_size_of_the_input() -> None:
    with pytest.raises(ValueError, match="needs the size"):
        BinaryConv2d(4, 6, 3, form=LayerForm(scale="learned_dense"))
    with pytest.raises(ValueError, match="xnor_k is for binary weights"):
        BinaryConv2d(4, 6, 3, form=LayerForm(scale="xnor_k", weights="int4"))
    with pytest.raises(ValueError, match="is of convolutions"):
        BinaryLinear(4, 6, form=LayerForm(scale="learned_map"))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_training_and_evaluation_compute_the_same(form: LayerForm, norm: bool) -> None:
    x = images()
    layer = trained(convolution(form, norm=norm), x)
    evaluated = layer(x)
    layer.train()
    if layer.norm is not None:
        layer.norm.eval()  # with the statistics that evaluation has
    assert torch.allclose(layer(x), evaluated, rtol=1e-4, atol=1e-4)
    assert evaluated.std() > 0


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_exported_layer_is_constant_and_equal_to_the_bit(form: LayerForm, norm: bool) -> None:
    x = images()
    layer = trained(convolution(form, norm=norm, stride=2), x)
    exported = layer.for_export()
    assert not list(exported.parameters())
    assert torch.equal(exported(x), layer(x))
    if form.is_binary:
        assert set(exported.weight.unique().tolist()) == {-1.0, 1.0}
    assert exported.packs_as == ("BinaryConv" if form.is_binary else None)
    with torch.no_grad():
        layer.weight.neg_()
    assert not torch.equal(exported(x), layer(x))


def test_evaluation_is_one_product_and_one_sum_of_the_integers() -> None:
    x = images()
    layer = trained(convolution(LayerForm(scale="mean_abs"), norm=True), x)
    assert layer.norm is not None
    a, b = layer.norm.factors()
    scale = layer.weight.double().abs().mean((1, 2, 3)).float() * a
    integers = by_hand(x, layer.weight, padding=1).float()
    assert torch.equal(layer(x), integers * scale[:, None, None] + b[:, None, None])
    normed = F.batch_norm(
        integers * layer.weight.abs().mean((1, 2, 3))[:, None, None],
        layer.norm.running_mean, layer.norm.running_var, layer.norm.weight, layer.norm.bias,
    )  # fmt: skip
    assert torch.allclose(layer(x), normed, atol=1e-5)


def test_the_gradient_of_latent_weights_is_xnor_nets() -> None:
    # d/dW of mean|W| sign(W): sign(W) / n from the scale, mean|W| where |W| < 1 from the sign.
    layer = convolution(LayerForm(scale="mean_abs", activations="real"))
    with torch.no_grad():
        layer.weight.mul_(8)
    layer(images()).sum().backward()
    weight = layer.weight.detach().requires_grad_()
    signs = sign(layer.weight.detach()).requires_grad_()
    scale = weight.abs().mean((1, 2, 3), keepdim=True)
    F.conv2d(images(), scale * signs, padding=1).sum().backward()
    expected = weight.grad + signs.grad * (weight.abs() < 1)  # type: ignore[operator]
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, expected, rtol=1e-4, atol=1e-5)
    assert (layer.weight.abs() >= 1).any()


@pytest.mark.parametrize("scale", SCALES)
def test_state_is_the_same_from_real_to_binary(scale: Scale) -> None:
    steps: list[tuple[Weights, Any]] = [("real", "real"), ("real", "binary"), ("binary", "binary")]
    layers = [convolution(LayerForm(w, a, "clipped", scale), norm=True) for w, a in steps]
    for before, after in itertools.pairwise(layers):
        after.load_state_dict(before.state_dict())


def test_real_weights_and_activations_are_the_ordinary_layer() -> None:
    layer = convolution(LayerForm("real", "real"))
    assert torch.equal(layer(images()), F.conv2d(images(), layer.weight, padding=1))
    assert torch.equal(layer.eval()(images()), F.conv2d(images(), layer.weight, padding=1))


def test_real_weights_under_a_learned_scale_have_the_size_of_their_signs() -> None:
    layer = convolution(LayerForm("real", "real", scale="learned")).eval()
    weight, scale, _ = layer.constants()
    assert torch.allclose(weight.abs().mean((1, 2, 3)), torch.ones(6))
    assert torch.equal(scale.flatten(), layer.scale_channel)


def test_ternary_weights_are_zero_below_seven_tenths_of_the_mean_and_can_leave() -> None:
    layer = convolution(LayerForm("ternary"))
    mean = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    levels, scale, _ = layer.eval().constants()
    kept = layer.weight.abs() > 0.7 * mean
    assert torch.equal(levels, torch.where(kept, sign(layer.weight), 0.0))
    of_kept = (layer.weight.abs() * kept).sum((1, 2, 3)) / kept.sum((1, 2, 3))
    assert torch.allclose(scale.flatten(), of_kept)
    layer.train()(images()).square().sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad[~kept] != 0).all()


@pytest.mark.parametrize(("weights", "largest"), [("int2", 1), ("int4", 7), ("int8", 127)])
def test_integer_weights_are_levels_of_a_step_a_channel(weights: Weights, largest: int) -> None:
    layer = convolution(LayerForm(weights, "real")).eval()
    levels, scale, _ = layer.constants()
    assert torch.equal(levels, levels.round())
    assert torch.equal(levels.abs().amax((1, 2, 3)), torch.full((6,), float(largest)))
    assert torch.allclose(scale.flatten() * largest, layer.weight.abs().amax((1, 2, 3)))
    assert ((levels * scale[:, None] - layer.weight).abs() <= scale[:, None] / 2 + 1e-6).all()


def test_integer_activations_find_their_step_in_the_first_batch_and_learn_it() -> None:
    layer = BinaryConv2d(4, 6, 1, form=LayerForm("real", "int4"))
    x = images()
    assert layer.input_step.item() == 0
    layer(x).sum().backward()
    assert layer.input_step.item() == pytest.approx(2 * float(x.abs().mean()) / 7**0.5)
    assert layer.input_step.grad is not None
    before = layer.input_step.item()
    layer(9 * x)
    assert layer.input_step.item() == before
    levels = (x / before).round().clamp(-7, 7)
    assert torch.allclose(layer.eval()(x), F.conv2d(levels * before, layer.weight), atol=1e-5)


def test_brevitas_has_the_same_signs() -> None:
    from brevitas.core.quant import BinaryQuant
    from brevitas.core.scaling import ConstScaling

    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, float("nan"), float("inf")])
    assert torch.equal(BinaryQuant(ConstScaling(1.0))(x)[0], sign(x))


def test_a_linear_layer_is_the_same_without_positions() -> None:
    torch.manual_seed(0)
    layer = BinaryLinear(7, 5, norm=True)
    x = torch.randn(6, 7)
    layer(x)
    layer.eval()
    assert layer.norm is not None
    a, b = layer.norm.factors()
    scale = layer.weight.double().abs().mean(1).float() * a
    assert torch.equal(layer(x), (sign(x) @ sign(layer.weight).T) * scale + b)
    exported = layer.for_export()
    assert torch.equal(exported(x), layer(x))
    assert (layer.packs_as, exported.packs_as) == ("BinaryGemm", "BinaryGemm")


def test_only_a_layer_of_one_bit_on_both_sides_is_packed() -> None:
    assert convolution(LayerForm()).packs_as == "BinaryConv"
    assert convolution(LayerForm(activations="real")).packs_as is None
    assert convolution(LayerForm(weights="ternary")).packs_as is None
    assert [convolution(form).mac_bits for form in (LayerForm(), LayerForm("int4"), LayerForm("real"))] == [1, 4, 32]
