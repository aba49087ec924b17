"""What happens to an image between the camera and the class logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from export.fold import fold_probabilities
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from runtime.errors import ExportError


def identity_graph(width: int, classes: int, subclasses: int, **options: bool) -> DeployableGraph:
    """A graph whose student passes `width` pixels on as logits."""
    preprocess = Preprocess(InputSignature((1, width, 1)), Normalization(1.0, (0.0,), (1.0,)))
    return DeployableGraph(preprocess, nn.Flatten(), classes, subclasses, **options)


def test_preprocess_normalises_each_channel_by_hand() -> None:
    normalization = Normalization(1 / 255, (0.5, 0.25), (0.5, 2.0))
    images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)  # (1, H 1, W 2, channels 2)
    x = Preprocess(InputSignature((1, 2, 2)), normalization)(images)
    assert x.shape == (1, 2, 1, 2)
    assert x.dtype == torch.float32
    expected = torch.tensor([[[[-1.0, (0.2 - 0.5) / 0.5]], [[0.375, (0.4 - 0.25) / 2]]]])
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)


def test_both_layouts_give_the_same_tensor() -> None:
    normalization = Normalization(1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    nhwc = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8))
    nchw = nhwc.permute(0, 3, 1, 2).contiguous()
    a = Preprocess(InputSignature((4, 5, 3), layout="NHWC"), normalization)(nhwc)
    b = Preprocess(InputSignature((3, 4, 5), layout="NCHW"), normalization)(nchw)
    assert torch.equal(a, b)


@pytest.mark.parametrize(("shape", "layout"), [((4, 5, 3), "NHWC"), ((3, 4, 5), "NCHW")])
def test_signature_knows_its_axes(shape: tuple[int, ...], layout: str) -> None:
    signature = InputSignature(shape, layout=layout)
    assert (signature.height, signature.width, signature.channels) == (4, 5, 3)


def test_folded_output_is_the_log_of_summed_exponentials() -> None:
    logits = identity_graph(4, 2, 2)(torch.tensor([1, 2, 3, 3], dtype=torch.uint8).reshape(1, 1, 4, 1))
    expected = torch.tensor([[np.log(np.exp(1) + np.exp(2)), 3 + np.log(2)]], dtype=torch.float32)
    torch.testing.assert_close(logits, expected)


def test_subclass_probabilities_sum_to_the_class_probabilities() -> None:
    images = torch.randint(0, 12, (5, 1, 6, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    logits, probabilities = identity_graph(6, 2, 3, subclass_probabilities=True)(images)
    assert probabilities.shape == (5, 6)
    torch.testing.assert_close(fold_probabilities(probabilities, 3), logits.softmax(1), atol=1e-6, rtol=0)


def test_one_subclass_adds_nothing() -> None:
    logits = identity_graph(4, 4, 1)(torch.tensor([1, 2, 3, 9], dtype=torch.uint8).reshape(1, 1, 4, 1))
    assert logits.tolist() == [[1.0, 2.0, 3.0, 9.0]]


def test_half_precision_student_gives_float32_logits() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).half()

    preprocess = Preprocess(InputSignature((1, 4, 1)), Normalization(1.0, (0.0,), (1.0,)))
    for graph in (DeployableGraph(preprocess, Half(), 4), DeployableGraph(preprocess, Half(), 2, 2)):
        assert graph(torch.zeros(1, 1, 4, 1, dtype=torch.uint8)).dtype == torch.float32


def test_head_of_another_width_should_fail_and_name_both() -> None:
    graph = identity_graph(5, 2, 3)
    with pytest.raises(ExportError, match=r"\(N, 5\); expected \(N, 6\) for 2 classes × 3 subclasses"):
        graph(torch.zeros(1, 1, 5, 1, dtype=torch.uint8))


def test_student_without_logits_should_fail() -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x,)

    preprocess = Preprocess(InputSignature((1, 4, 1)), Normalization(1.0, (0.0,), (1.0,)))
    with pytest.raises(ExportError, match="returns tuple; expected a tensor or an object"):
        DeployableGraph(preprocess, Strange(), 4)(torch.zeros(1, 1, 4, 1, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": (8, 8)}, r"\(8, 8\); expected three positive sizes in the order HWC"),
        ({"shape": (0, 8, 1)}, "three positive sizes"),
        ({"shape": (8, 8, 1), "layout": "NWHC"}, "'NWHC'; expected one of NHWC, NCHW"),
        ({"shape": (8, 8, 1), "dtype": "float32"}, "'float32'; expected uint8"),
        ({"shape": (8,), "dtype": "int32", "layout": "NL"}, "int32 and ids is None; expected int32 with a number of"),
        ({"shape": (8, 8, 1), "ids": 5}, "uint8 and ids is 5"),
        ({"shape": (8,), "dtype": "int32", "ids": 5}, "'NHWC'; expected one of NL"),
        ({"shape": (8, 8), "dtype": "int32", "layout": "NL", "ids": 5}, "one positive size in the order L"),
        ({"shape": (8,), "dtype": "int32", "layout": "NL", "ids": 1}, "1 distinct ids"),
    ],
)
def test_impossible_signature_should_fail(options: dict, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        InputSignature(**options)


@pytest.mark.parametrize(
    ("scale", "mean", "std", "said"),
    [
        (1.0, (0.0, 0.0), (1.0,), "2 means and 1 deviations"),
        (1.0, (0.0,), (0.0,), "expected positive"),
        (float("nan"), (0.0,), (1.0,), "not finite"),
    ],
)
def test_impossible_normalization_should_fail(scale: float, mean: tuple, std: tuple, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        Normalization(scale, mean, std)


def test_normalization_for_other_channels_should_fail() -> None:
    with pytest.raises(ExportError, match="1 channels, images have 3"):
        Preprocess(InputSignature((8, 8, 3)), Normalization(1.0, (0.0,), (1.0,)))


def test_ids_pass_the_preprocessing_as_they_are() -> None:
    signature = InputSignature.of_ids(4, 10)
    ids = torch.tensor([[9, 3, 0, 0], [1, 0, 0, 0]], dtype=torch.int32)
    assert (signature.shape, signature.dtype, signature.layout, signature.ids) == ((4,), "int32", "NL", 10)
    assert Preprocess(signature, None)(ids) is ids


def test_normalization_that_does_not_belong_should_fail() -> None:
    with pytest.raises(ExportError, match="ids have no normalization"):
        Preprocess(InputSignature.of_ids(4, 10), Normalization(1.0, (0.0,), (1.0,)))
    with pytest.raises(ExportError, match="no normalization; expected one for 3 channels"):
        Preprocess(InputSignature((8, 8, 3)), None)
