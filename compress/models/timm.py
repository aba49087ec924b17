"""Any image classifier of timm (github.com/huggingface/pytorch-image-models), through the extra `timm`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
from collections.abc import Hashable, Iterator, Mapping
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.kinds import as_recipe_value
from compress.models.base import Classifier, ModelSpec, Output, image_shape, initialise
from compress.recipe_report import did_you_mean
from export.graph import InputSignature
from runtime.errors import MissingExtraError, TrainingError

# Plain, so that no name reaches timm's other sources (`hf-hub:`, `local-dir:`).
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")]


class TimmModel(Classifier):
    """timm's own layers, asked for what edgefold reads: the maps that it calls intermediates, in its order."""

    def __init__(self, body: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.body: Any = body
        self.options = options  # that timm made it with
        self.feature_names = tuple(f"map{i + 1}" for i in range(len(body.feature_info)))  # type: ignore[arg-type]

    @property
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        """The very layer inside `body`: not registered, and so saved, twice."""
        layer: nn.Linear = self.body.get_classifier()
        return layer

    def forward(self, x: Tensor) -> Output:
        last, maps = self.body.forward_intermediates(x)
        embedding = self.body.forward_head(last, pre_logits=True)  # (N, D)
        return Output(self.classifier(embedding), embedding, tuple(maps))

    def from_feature(self, x: Tensor, index: int) -> Tensor:
        raise TrainingError("a timm model cannot go on from one of its maps", "Take srrl with position: last.")


class TimmSpec(ModelSpec):
    """A model of timm by its name: `timm:resnet18`, or `timm: {name: resnet18, pretrained: true}`.

    pretrained: start from timm's weights, of the tag where the name has one (`resnet18.a1_in1k`); the head is new.
    """

    kind = "timm"
    shorthand = "name"

    name: Name
    pretrained: bool = False

    def build(self, *, signature: InputSignature, outputs: int) -> TimmModel:
        channels, height, width = image_shape(signature)
        options: dict[str, Any] = {"num_classes": outputs, "in_chans": channels}
        timm = timm_module()
        self._require_known(timm)
        if timm.get_pretrained_cfg_value(self.name, "fixed_input_size"):
            options["img_size"] = (height, width)
        body = timm.create_model(self.name, pretrained=False, **options)
        classifier = body.get_classifier()
        if not isinstance(classifier, nn.Linear) or not hasattr(body, "forward_intermediates"):
            raise ValueError(f"timm's {self.name} has no single Linear classifier with maps before it; choose another")
        initialise(classifier if self.pretrained else body, self.init)
        return TimmModel(body, options)

    def load_pretrained(self, model: Classifier) -> None:
        """Put timm's weights into the model, all but those of the head."""
        assert isinstance(model, TimmModel)
        if not self.pretrained:
            return
        head = {key: value.clone() for key, value in model.classifier.state_dict().items()}
        with _no_code_in_weights():
            published = timm_module().create_model(self.name, pretrained=True, **model.options)
        model.body.load_state_dict(published.state_dict())
        model.classifier.load_state_dict(head)

    def outside(self) -> Hashable:
        return id(timm_module())

    def resolved(self) -> dict[str, Any]:
        options = as_recipe_value(self)[self.kind]
        if self.pretrained:
            self._require_known(timm_module())
            options["weights_sha256"] = _sha256_of_pretrained(self.name)
        return {self.kind: options}

    def _require_known(self, timm: ModuleType) -> None:
        if not timm.is_model(self.name):
            known = timm.list_models()
            raise ValueError(f"timm has no model '{self.name}'. {did_you_mean(self.name, known)}")


def timm_module() -> ModuleType:
    """Return timm. Raises MissingExtraError where it is not installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"timm: models need {error.name}", "pip install 'edgefold[timm]'") from error


@functools.lru_cache(maxsize=16)
def _sha256_of_pretrained(name: str) -> str:
    with _no_code_in_weights():
        weights = timm_module().create_model(name, pretrained=True).state_dict()
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _no_code_in_weights() -> Iterator[None]:
    """Hold torch.load to tensors, whatever asks for more: files that timm has no safetensors for are pickles."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
