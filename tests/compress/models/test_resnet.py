from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models import MODELS, parameter_count
from compress.models.resnet import Bottleneck, ResNet, ResNet8x4Spec, ResNet32x4Spec, ResNetSpec
from export.graph import InputSignature

SIGNATURE = InputSignature((8, 8, 3))


def built(spec: ResNetSpec) -> ResNet:
    torch.manual_seed(0)
    return spec.build(signature=SIGNATURE, outputs=10)


def test_basic_blocks_keep_their_names_and_weights() -> None:
    # A stage that was trained before there were bottlenecks loads, and a seed still gives the same start.
    state = built(ResNetSpec(depth=6, widths=(4, 6), shortcut="projection")).state_dict()
    assert [name for name in state if name.endswith("weight")] == [
        "stem.0.weight",
        "stem.1.weight",
        "stages.0.0.conv1.weight",
        "stages.0.0.norm1.weight",
        "stages.0.0.conv2.weight",
        "stages.0.0.norm2.weight",
        "stages.1.0.conv1.weight",
        "stages.1.0.norm1.weight",
        "stages.1.0.conv2.weight",
        "stages.1.0.norm2.weight",
        "stages.1.0.shortcut.0.weight",
        "stages.1.0.shortcut.1.weight",
        "classifier.weight",
    ]
    assert state["stages.1.0.conv1.weight"].double().sum().item() == pytest.approx(-5.4545404, abs=1e-4)
    assert state["classifier.weight"].double().sum().item() == pytest.approx(5.1314661, abs=1e-4)


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


@pytest.mark.parametrize(("inputs", "stride"), [(12, 1), (12, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_bottleneck_is_the_papers(inputs: int, stride: int, shortcut: str) -> None:
    torch.manual_seed(0)
    block = Bottleneck(inputs, 3, stride, shortcut).eval()  # type: ignore[arg-type]
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(2, inputs, 7, 6)
    mapped = F.relu(normalised(F.conv2d(x, block.conv1.weight), block.norm1))
    mapped = F.relu(normalised(F.conv2d(mapped, block.conv2.weight, stride=stride, padding=1), block.norm2))
    mapped = normalised(F.conv2d(mapped, block.conv3.weight), block.norm3)
    beside = x
    if (inputs, stride) != (12, 1) and shortcut == "identity":
        beside = torch.cat([x[:, :, ::stride, ::stride], torch.zeros(2, 12 - inputs, *mapped.shape[2:])], dim=1)
    elif (inputs, stride) != (12, 1):
        convolution, norm = block.shortcut
        beside = normalised(F.conv2d(x, convolution.weight, stride=stride), norm)
    with torch.no_grad():
        torch.testing.assert_close(block(x), F.relu(mapped + beside))


def test_blocks_of_each_stage_and_stem() -> None:
    model = built(ResNetSpec(depth=14, blocks=(1, 3, 2), widths=(6, 8, 8), stem=4))
    assert [len(stage) for stage in model.stages] == [1, 3, 2]
    assert model.stem[0].out_channels == 4
    assert model.stages[0][0].conv1.in_channels == 4


def test_blocks_written_out_are_those_of_the_depth() -> None:
    written, plain = built(ResNetSpec(depth=14, blocks=(2, 2, 2))), built(ResNetSpec(depth=14))
    a, b = written.state_dict(), plain.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("kind", "spec", "depth"), [("resnet8x4", ResNet8x4Spec(), 8), ("resnet32x4", ResNet32x4Spec(), 32)]
)
def test_a_preset_is_resnet_with_other_defaults(kind: str, spec: ResNetSpec, depth: int) -> None:
    assert MODELS[kind] is type(spec)
    assert set(type(spec).model_fields) == set(ResNetSpec.model_fields)
    written = ResNetSpec(depth=depth, widths=(64, 128, 256), stem=32, shortcut="projection", init="he_fan_out")
    assert spec.model_dump() == written.model_dump()
    counts = {parameter_count(each, signature=SIGNATURE, outputs=100) for each in (spec, written)}
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"depth": 18},
            r"depth 18 is not 2 \+ 6 · blocks, with 3 stages of two .* expected 8, 14, 20, ..., or `blocks`",
        ),
        (
            {"depth": 14, "block": "bottleneck"},
            r"depth 14 is not 2 \+ 9 · blocks, with 3 stages of three .* 11, 20, 29",
        ),
        ({"depth": 8, "blocks": (1, 1)}, "blocks has 2 stages and widths has 3; expected as many"),
        ({"depth": 18, "blocks": (1, 2, 1)}, r"depth 18 does not agree with blocks \[1, 2, 1\].* write depth: 10"),
        ({"blocks": (1, 2, 1), "block": "bottleneck"}, r"depth 20 does not agree .* write depth: 14"),
        ({"stem": 32}, "widths become smaller.* use shortcut: projection"),
        ({"depth": 8, "blocks": (1, 0, 2)}, "greater than or equal to 1"),
        ({"block": "wide"}, "'basic' or 'bottleneck'"),
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ResNetSpec(**options)


def test_a_bottleneck_may_follow_a_stem_wider_than_its_convolutions() -> None:
    # The padded shortcut compares maps, and a bottleneck's map is four times as wide.
    model = built(ResNetSpec(depth=8, block="bottleneck", widths=(4, 8), stem=16))
    assert model(torch.zeros(2, 3, 8, 8)).embedding.shape == (2, 32)
