"""Models of timm, by a stand-in with timm's interface: timm needs torchvision, which these tests do without."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from compress.kinds import OneOf
from compress.models import MODELS, ModelSpec, parameter_count, shapes_of
from compress.models.timm import TimmSpec
from compress.plan import plan
from compress.variants import load_variants
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.to_onnx import onnx_from_graph
from runtime.errors import MissingExtraError, RecipeError, TrainingError

MODEL: TypeAdapter[ModelSpec] = TypeAdapter(Annotated[ModelSpec, OneOf("model", MODELS)])
SIGNATURE = InputSignature((8, 10, 3))
NAMES = ("resnet18", "resnet34", "vit_tiny", "two_heads")


class Body(nn.Module):
    """As timm's ResNet: two stages, pooling and `fc`, and what timm calls them."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(in_chans, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, num_classes)
        self.num_features = 6
        self.feature_info = [
            {"num_chs": 4, "reduction": 1, "module": "layer1"},
            {"num_chs": 6, "reduction": 2, "module": "layer2"},
        ]

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x))

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.layer1(x)
        second = self.layer2(first)
        return second, [first, second]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Sized(Body):
    """As timm's vision transformer, which takes images of one size."""

    def __init__(self, img_size: tuple[int, int] = (224, 224), **options: Any) -> None:
        super().__init__(**options)
        self.img_size = img_size

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert x.shape[2:] == self.img_size, f"Input size {x.shape[2:]} doesn't match model {self.img_size}."
        return super().forward_intermediates(x)


class TwoHeads(Body):
    """As timm's distilled transformers."""

    def get_classifier(self) -> Any:
        return self.fc, self.fc


class Timm(ModuleType):
    """`downloads`: seeds of what would come from the hub, by name."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.downloads = {"resnet18": 7, "resnet34": 8}
        self.loaded: list[str] = []

    def list_models(self, filter: str = "", pretrained: bool = False) -> list[str]:
        return sorted(NAMES)

    def is_model(self, name: str) -> bool:
        return name.partition(".")[0] in NAMES

    def get_pretrained_cfg_value(self, name: str, key: str) -> Any:
        return {"fixed_input_size": name == "vit_tiny"}.get(key)

    def create_model(self, name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if not self.is_model(name):
            raise RuntimeError(f"Unknown model ({name})")
        made = {"vit_tiny": Sized, "two_heads": TwoHeads}.get(name, Body)(**options)
        if pretrained:
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
            self.loaded.append(name)
            source = Body()
            generator = torch.Generator().manual_seed(self.downloads[name.partition(".")[0]])
            with torch.no_grad():
                for parameter in source.parameters():
                    parameter.normal_(generator=generator)
            weights = source.state_dict()
            if options.get("num_classes", 1000) != 1000:
                weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
            made.load_state_dict(weights, strict=False)
        return made


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Timm:
    from compress.models.timm import _sha256_of_pretrained

    _sha256_of_pretrained.cache_clear()
    made = Timm()
    monkeypatch.setitem(sys.modules, "timm", made)
    return made


@pytest.mark.usefixtures("timm")
def test_outputs_are_those_of_timm() -> None:
    model = TimmSpec(name="resnet18").build(signature=SIGNATURE, outputs=5).eval()
    x = torch.randn(4, 3, 8, 10)
    output = model(x)
    torch.testing.assert_close(output.logits, model.body(x))
    torch.testing.assert_close(output.embedding, model.body.forward_features(x).mean((2, 3)))
    assert [tuple(each.shape[1:]) for each in output.features] == [(4, 8, 10), (6, 4, 5)]
    assert model.classifier is model.body.fc
    shapes = shapes_of(TimmSpec(name="resnet18"), signature=SIGNATURE, outputs=5)
    assert (shapes.embedding, shapes.features, shapes.feature_names) == (6, ((4, 8, 10), (6, 4, 5)), ("map1", "map2"))


@pytest.mark.usefixtures("timm")
def test_the_classifier_is_counted_and_saved_once() -> None:
    spec = TimmSpec(name="resnet18")
    assert parameter_count(spec, signature=SIGNATURE, outputs=5) == 27 * 4 + 8 + 36 * 6 + 12 + 6 * 5 + 5
    model, other = (spec.build(signature=SIGNATURE, outputs=5).eval() for _ in range(2))
    assert [key for key in model.state_dict() if key.endswith("fc.weight")] == ["body.fc.weight"]
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 10)
    assert torch.equal(other(x).logits, model(x).logits)
    copied = copy.deepcopy(model)
    assert copied.classifier is copied.body.fc is not model.classifier


@pytest.mark.usefixtures("timm")
def test_models_for_one_size_are_made_for_the_size_of_the_data() -> None:
    assert TimmSpec(name="vit_tiny").build(signature=SIGNATURE, outputs=5).body.img_size == (8, 10)


@pytest.mark.usefixtures("timm")
def test_what_cannot_be_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timm has no model 'resnet_18'\. Did you mean 'resnet18'\?"):
        TimmSpec(name="resnet_18").build(signature=SIGNATURE, outputs=5)
    with pytest.raises(ValueError, match="two_heads has no single Linear classifier"):
        TimmSpec(name="two_heads").build(signature=SIGNATURE, outputs=5)
    with pytest.raises(ValueError, match="the model takes images, and the data is text"):
        TimmSpec(name="resnet18").build(signature=InputSignature.of_ids(8, 100), outputs=5)
    for name in ("hf-hub:someone/else", "local-dir:/models", "../resnet18", ""):
        with pytest.raises(ValidationError):
            TimmSpec(name=name)
    with pytest.raises(TrainingError, match="cannot go on from one of its maps"):
        TimmSpec(name="resnet18").build(signature=SIGNATURE, outputs=5).from_feature(torch.zeros(1, 4, 8, 10), 0)


@pytest.mark.usefixtures("timm")
def test_onnx_equals_torch() -> None:
    student = TimmSpec(name="resnet18").build(signature=SIGNATURE, outputs=6)
    graph = DeployableGraph(Preprocess(SIGNATURE, Normalization(1 / 255, (0.4,) * 3, (0.2,) * 3)), student, 3, 2).eval()
    inputs = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(onnx_from_graph(graph, SIGNATURE, metadata={}))
    with torch.no_grad():
        expected = graph(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"input": inputs})[0], expected, atol=1e-5)


def test_the_short_and_the_long_way_of_writing_are_one() -> None:
    short = MODEL.validate_python("timm:resnet18.a1_in1k")
    assert short == TimmSpec(name="resnet18.a1_in1k")
    assert short == MODEL.validate_python({"timm": {"name": "resnet18.a1_in1k", "pretrained": False}})
    with pytest.raises(ValidationError, match="unknown model 'mlp:8'"):
        MODEL.validate_python("mlp:8")


# In a recipe

TEXT = "name: of-timm\ndata: {source: digits}\nstages:\n  plain: {model: %s, objective: ce, train: {epochs: 1}}\n"


@pytest.fixture
def key_of(tmp_path: Path) -> Callable[[str], str]:
    def key(model: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(TEXT % model)
        return plan(load_variants(path)[0], None).stage("plain").key

    return key


def test_pretrained_weights_are_in_the_key(timm: Timm, key_of: Callable[[str], str]) -> None:
    from compress.models.timm import _sha256_of_pretrained

    plain = key_of("'timm:resnet18'")
    assert not timm.loaded
    assert key_of("{timm: {name: resnet18}}") == plain
    first = key_of("{timm: {name: resnet18, pretrained: true}}")
    assert key_of("{timm: {name: resnet18, pretrained: true}}") == first != plain
    assert timm.loaded == ["resnet18"]  # shapes and counts load nothing
    timm.downloads["resnet18"] = 9
    _sha256_of_pretrained.cache_clear()
    assert key_of("{timm: {name: resnet18, pretrained: true}}") not in (first, plain)


def test_pretrained_weights_are_where_training_starts(timm: Timm) -> None:
    spec = TimmSpec(name="resnet18", pretrained=True, init="he")
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(spec.build(signature=InputSignature((8, 8, 3)), outputs=5))
    assert not timm.loaded  # a finished stage is built again without them
    one, two = models
    assert not torch.equal(one.body.layer1[0].weight, two.body.layer1[0].weight)
    head = one.classifier.weight.clone()
    for model in models:
        spec.load_pretrained(model)
    assert torch.equal(one.body.layer1[0].weight, two.body.layer1[0].weight)
    assert torch.equal(one.classifier.weight, head)
    assert not torch.equal(one.classifier.weight, two.classifier.weight)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.usefixtures("timm")
def test_unknown_names_stand_at_their_line(key_of: Callable[[str], str]) -> None:
    with pytest.raises(RecipeError, match=r"line 4: stages.plain.model: timm has no model 'resnet20'\. Did you mean"):
        key_of("'timm:resnet20'")


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, key_of: Callable[[str], str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError) as caught:
        key_of("'timm:resnet18'")
    assert caught.value.remedy == "pip install 'edgefold[timm]'"
