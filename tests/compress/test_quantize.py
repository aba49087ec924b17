"""`quantize:` of a stage: which layers it reaches, what it costs, what a recipe may not say, which keys it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.layers.quant import QuantConv2d, QuantLayer, QuantLinear
from compress.models import MODELS, ModelSpec, parameter_count, profile_of, shapes_of
from compress.plan import Plan, plan
from compress.quantize import QuantizedSpec, QuantizeSpec
from compress.recipe import StageSpec
from compress.variants import load_variants
from export.graph import InputSignature
from runtime.errors import RecipeError

IMAGES = InputSignature((8, 8, 3))

RECIPE = """\
name: few-bits
data: {source: digits}
train: {epochs: 1, batch_size: 64}
stages:
  float: {model: {mlp: {hidden: [8]}}, objective: ce}
  quantized: {like: float, init_from: float, quantize: {weights: 4}}
export: {stage: quantized}
"""


def bits_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    layers = ((name, each) for name, each in model.named_modules() if isinstance(each, QuantLayer))
    return {name: (layer.weight_bits, layer.input_bits) for name, layer in layers}


def quantized(model: str | dict[str, Any], signature: InputSignature = IMAGES, **options: Any) -> nn.Module:
    spec = StageSpec.model_validate({"model": model, "quantize": options, "objective": "ce"})
    return spec.network.build(signature=signature, outputs=5)


def planned(folder: Path, text: str) -> Plan:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    (variant,) = load_variants(path)
    return plan(variant, None)


def test_first_and_last_layer_have_eight_bits_unless_told_otherwise() -> None:
    model = {"mlp": {"hidden": (6, 4)}}
    choices: list[dict[str, Any]] = [{}, {"first_last": "same"}, {"first_last": "float"}]
    ends = [bits_of(quantized(model, weights=2, activations=4, **options)) for options in choices]
    few = (2, 4)
    assert ends[0] == {"hidden.0": (8, 8), "hidden.1": few, "classifier": (8, 8)}
    assert ends[1] == {"hidden.0": few, "hidden.1": few, "classifier": few}
    assert ends[2] == {"hidden.1": few}


def test_first_and_last_are_by_running_order_and_shortcuts_count() -> None:
    found = bits_of(quantized({"wrn": {"depth": 10}}, weights=4))
    assert [name for name, bits in found.items() if bits == (8, 8)] == ["stem", "classifier"]
    assert found["stages.1.0.shortcut"] == (4, 8)
    assert len(found) == 11  # stem, three blocks of two and their shortcuts, classifier


@pytest.mark.parametrize(
    "kind",
    ["alexnet", "imagenet_resnet", "mlp", "mnist_cnn", "mobilenet", "mobilenet_v2", "resnet", "shufflenet_v1",
     "shufflenet_v2", "small_cnn", "vgg", "wrn"],
)  # fmt: skip
def test_every_family_of_images_has_all_its_products_quantised_and_the_same_state(kind: str) -> None:
    side = 32
    spec = QuantizedSpec(model=MODELS[kind](), quantize=QuantizeSpec(weights=4))
    signature = InputSignature((side, side, 3))
    with torch.device("meta"):
        model, like = (each.build(signature=signature, outputs=5) for each in (spec, spec.model))
    products = [name for name, each in like.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert list(bits_of(model)) == products
    assert set(like.state_dict()) <= set(model.state_dict())
    assert shapes_of(spec, signature=signature, outputs=5) == shapes_of(spec.model, signature=signature, outputs=5)


def test_a_text_model_has_its_linear_layers_quantised_and_its_table_left() -> None:
    model = quantized({"bag_mlp": {"width": 6, "hidden": (5, 3)}}, InputSignature.of_ids(12, 40), weights=4)
    assert set(bits_of(model).values()) == {(4, 8), (8, 8)}
    assert any(isinstance(each, nn.Embedding | nn.EmbeddingBag) for each in model.modules())


class Unusual(ModelSpec):
    """A model with layers that must stay as they are."""

    kind = "unusual"

    def build(self, *, signature: InputSignature, outputs: int) -> Any:
        class Derived(nn.Linear):
            pass

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mirrored = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
                self.never = nn.Linear(4, 4)
                self.twice = nn.Linear(4, 4)
                self.derived = Derived(4, 4)
                self.classifier = nn.Linear(4, outputs)
                self.first = nn.Conv2d(4, 4, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.first(self.mirrored(x)).mean((2, 3))
                return self.classifier(self.derived(self.twice(self.twice(x))))

        return Net()


def test_layers_that_compute_something_else_or_never_run_stay_float() -> None:
    spec = QuantizedSpec(model=Unusual(), quantize=QuantizeSpec(weights=4, activations=4))
    model = spec.build(signature=IMAGES, outputs=5)
    assert bits_of(model) == {"twice": (4, 4), "classifier": (8, 8), "first": (8, 8)}
    assert isinstance(model.get_submodule("first"), QuantConv2d)
    assert isinstance(model.get_submodule("twice"), QuantLinear)


def test_the_float_model_of_a_seed_is_what_a_quantised_one_begins_with() -> None:
    spec = MODELS["small_cnn"](widths=(4, 6))
    built = []
    for each in (spec, QuantizedSpec(model=spec, quantize=QuantizeSpec(weights=4))):
        torch.manual_seed(3)
        built.append(each.build(signature=IMAGES, outputs=5).eval())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(built[0](x).logits, built[1](x).logits)  # no batch has set the steps


def test_parameters_bytes_and_macs_are_counted_by_their_bits() -> None:
    mlp = MODELS["mlp"](hidden=(16, 10))
    spec = QuantizedSpec(model=mlp, quantize=QuantizeSpec(weights=4, activations=8))
    weights, biases = (192 * 16, 16 * 10, 10 * 5), 16 + 10 + 5
    steps = (16 + 1) + (10 + 1) + (5 + 1)
    assert parameter_count(spec, signature=IMAGES, outputs=5) == sum(weights) + biases + steps
    profile = profile_of(spec, signature=IMAGES, outputs=5)
    assert profile.bytes == {
        "8 bit": weights[0] + weights[2],
        "4 bit": weights[1] // 2,
        "float32": 4 * (biases + steps),
    }
    assert profile.macs == {8: sum(weights)}
    narrow = profile_of(
        QuantizedSpec(model=mlp, quantize=QuantizeSpec(weights=2, activations=4)), signature=IMAGES, outputs=5
    )
    assert narrow.macs == {8: weights[0] + weights[2], 4: weights[1]}


def test_keys_of_float_stages_know_nothing_of_it(tmp_path: Path) -> None:
    made = planned(tmp_path, RECIPE)
    few, real = made.stage("quantized"), made.stage("float")
    assert "quantize" not in real.resolved
    assert few.resolved["quantize"] == {"weights": 4, "activations": 8, "first_last": 8}
    assert {**few.resolved, "parents": 0} == {**real.resolved, "quantize": few.resolved["quantize"], "parents": 0}
    others = [
        planned(tmp_path, RECIPE.replace("{weights: 4}", options)).stage("quantized").key
        for options in ("{weights: 4, activations: 4}", "{weights: 8}", "{weights: 4, first_last: same}")
    ]
    assert len({few.key, *others}) == 4


REAL = "{binary_cnn: {weights: real, activations: real}}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{weights: 4}", "{weights: 5}", "stages.quantized.quantize.weights: came 5, expected"),
        ("{weights: 4}", "{activations: 4}", "stages.quantized.quantize.weights: is missing"),
        (
            "{mlp: {hidden: [8]}}",
            "binary_cnn",
            "quantize is for real-valued models, and binary_cnn has bits of its own",
        ),
        ("{mlp: {hidden: [8]}}", REAL, "quantize is for real-valued models"),
        ("{stage: quantized}", "{stage: quantized, formats: [onnx, int8]}", "int8 would round once more"),
        ("{stage: quantized}", "{stage: quantized, formats: [onnx, fp16]}", "fp16 would round once more"),
        ("{weights: 4}", "{weights: 4, first_last: float}", "mlp has 2 layers, and first_last: float leaves none"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert RECIPE.count(old) == 1
    with pytest.raises(RecipeError) as error:
        planned(tmp_path, RECIPE.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "fits"), [("", True), ("quantize: {weights: 4}", True), ("quantize: {weights: 2}", False)]
)
def test_weights_come_from_the_float_stage_or_from_one_of_equal_bits(tmp_path: Path, source: str, fits: bool) -> None:
    text = RECIPE.replace("objective: ce}", f"objective: ce, {source}}}")
    if fits:
        assert planned(tmp_path, text).stage("quantized").init_from == "float"
        return
    with pytest.raises(RecipeError, match="'float' has another model or head"):
        planned(tmp_path, text)


def test_a_float_stage_does_not_start_from_a_quantised_one(tmp_path: Path) -> None:
    text = RECIPE.replace("stage: quantized", "stage: again") + ""
    text = text.replace(
        "export:", "  again: {model: {mlp: {hidden: [8]}}, objective: ce, init_from: quantized}\nexport:"
    )
    with pytest.raises(RecipeError, match="'quantized' has another model or head"):
        planned(tmp_path, text)
