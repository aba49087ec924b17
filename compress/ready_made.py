"""Teachers that no stage of the recipe trains: a finished stage on disk, or an ONNX file of one's own.

Both are known by their content. Where the file lies, from the working folder on, is in no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from compress.artifact import StageArtifact, read_artifact
from compress.datasets import DataSpec
from compress.kinds import OneOf, Spec, as_recipe_value
from compress.models import MODELS, Classifier, ModelSpec, Shapes, shapes_of
from compress.objectives.base import TeacherGives
from compress.quantize import QuantizedSpec, QuantizeSpec
from export.graph import InputSignature, Preprocess
from runtime.errors import RecipeError

if TYPE_CHECKING:  # onnx and onnxruntime are imported for a recipe that names a file
    from compress.onnx_teacher import OnnxFile

FileName = Annotated[str, Field(min_length=1)]


class ReadyMade(Protocol):
    """A teacher that has been read. `gives`: what a term may ask of it."""

    @property
    def name(self) -> str: ...

    @property
    def subclasses(self) -> int: ...

    @property
    def gives(self) -> frozenset[TeacherGives]: ...

    @property
    def identity(self) -> dict[str, Any]:
        """What stands for it in a stage's key."""
        ...

    def problem(self, data: DataSpec, signature: InputSignature, classes: int) -> str | None:
        """Say why it cannot teach on such inputs and classes, or None."""
        ...

    def shapes(self, signature: InputSignature, classes: int) -> Shapes: ...

    def build(self, preprocess: Preprocess) -> Classifier:
        """Return the model, on the CPU, which takes what `preprocess` gives."""
        ...


class OnnxTeacherSpec(Spec):
    """An ONNX file: `{onnx: path, logits: name, embedding: name}`, the names of tensors in it.

    subclasses: S of its head, class-major. input: `preprocessed` for float NCHW as the recipe's models are given, `raw`
    for uint8 as the data set gives it, as in edgefold's own bundles.
    """

    onnx: FileName
    logits: FileName = "logits"
    embedding: FileName | None = None
    subclasses: int = Field(1, ge=1, le=4096)
    input: Literal["preprocessed", "raw"] = "preprocessed"

    def read(self) -> ReadyMade:
        """Raises RecipeError, BundleError."""
        from compress.onnx_teacher import read_onnx

        path = Path(self.onnx)
        return OnnxReadyMade(path.name, self, read_onnx(path, logits=self.logits, embedding=self.embedding))


class ArtifactTeacherSpec(Spec):
    """A finished stage: `{artifact: path}`, its folder `runs/stages/<key>`, or its weights beside their stage.json."""

    artifact: FileName

    def read(self) -> ReadyMade:
        """Raises RecipeError."""
        artifact = read_artifact(Path(self.artifact))
        resolved = artifact.record["resolved"]
        try:
            model = _MODEL.validate_python(_with_tuples(resolved["model"]))
            if "quantize" in resolved:
                model = QuantizedSpec(model=model, quantize=QuantizeSpec.model_validate(resolved["quantize"]))
            return ArtifactReadyMade(f"stage {artifact.key[:12]}", artifact, model, resolved["subclasses"])
        except (ValidationError, KeyError) as error:
            raise RecipeError(f"{self.artifact}: its stage.json is of another version of edgefold") from error


_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(Annotated[ModelSpec, OneOf("model", MODELS)])


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    keys = value if isinstance(value, Mapping) else {}
    return next((key for key in ("onnx", "artifact") if key in keys or isinstance(value, _SPECS[key])), None)


_SPECS: Mapping[str, type[Spec]] = {"onnx": OnnxTeacherSpec, "artifact": ArtifactTeacherSpec}

TeacherName = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[OnnxTeacherSpec, Tag("onnx")]
    | Annotated[ArtifactTeacherSpec, Tag("artifact")],
    Discriminator(
        _form,
        custom_error_type="teacher",
        custom_error_message="expected an earlier stage, {artifact: path} or {onnx: path, logits: name}",
    ),
]


@dataclass(frozen=True)
class OnnxReadyMade:
    name: str
    spec: OnnxTeacherSpec
    file: OnnxFile

    @property
    def subclasses(self) -> int:
        return self.spec.subclasses

    @property
    def gives(self) -> frozenset[TeacherGives]:
        given: set[TeacherGives] = {"logits"}
        if self.file.embedding is not None:
            given.add("embedding")
        if self.file.classifier is not None:
            given.add("classifier")
        return frozenset(given)

    @property
    def identity(self) -> dict[str, Any]:
        return {"onnx": self.file.sha256, **self.spec.model_dump(mode="json", exclude={"onnx"})}

    def problem(self, data: DataSpec, signature: InputSignature, classes: int) -> str | None:
        width = self.file.logits_width
        if width != classes * self.subclasses:
            heads = f"{classes} classes × {self.subclasses} subclasses need {classes * self.subclasses}"
            return f"'{self.file.logits}' of {self.file.path} is {width} wide, and {heads}"
        return self.file.problem(signature, self.spec.input == "raw")

    def shapes(self, signature: InputSignature, classes: int) -> Shapes:
        return Shapes(self.file.embedding_width or 0, (), ())

    def build(self, preprocess: Preprocess) -> Classifier:
        from compress.onnx_teacher import OnnxTeacher

        return OnnxTeacher(self.file, preprocess, raw=self.spec.input == "raw")


@dataclass(frozen=True)
class ArtifactReadyMade:
    name: str
    artifact: StageArtifact
    model: ModelSpec
    subclasses: int
    gives: frozenset[TeacherGives] = frozenset({"logits", "embedding", "features", "classifier"})

    @property
    def identity(self) -> dict[str, Any]:
        sha256 = self.artifact.record["sha256"]["weights.safetensors"]
        network = (
            self.model.in_recipe() if isinstance(self.model, QuantizedSpec) else {"model": as_recipe_value(self.model)}
        )
        return {"artifact": sha256, **network, "subclasses": self.subclasses}

    def problem(self, data: DataSpec, signature: InputSignature, classes: int) -> str | None:
        resolved = self.artifact.record["resolved"]
        if resolved["classes"] != classes:
            return f"{self.name} has {resolved['classes']} classes, and the data {classes}"
        normalize = data.model_dump(mode="json")["normalize"]
        if resolved["data"]["normalize"] != normalize:
            return f"{self.name} was trained with normalize: {resolved['data']['normalize']}, and this is {normalize}"
        try:
            expected = _weight_shapes(self.model, signature, classes * self.subclasses)
        except ValueError as error:
            return f"{self.name}: {error}"
        came = {key: tuple(value.shape) for key, value in self.artifact.weights().items()}
        if key := next((key for key in expected if came.get(key) != expected[key]), None):
            return f"{self.name} is for other inputs: {key} is {came.get(key)}, and {signature} need {expected[key]}"
        return None

    def shapes(self, signature: InputSignature, classes: int) -> Shapes:
        return shapes_of(self.model, signature=signature, outputs=classes * self.subclasses)

    def build(self, preprocess: Preprocess) -> Classifier:
        outputs = self.artifact.record["resolved"]["classes"] * self.subclasses
        model = self.model.build(signature=preprocess.signature, outputs=outputs)
        model.load_state_dict(self.artifact.weights())
        return model


def _weight_shapes(model: ModelSpec, signature: InputSignature, outputs: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        built = model.build(signature=signature, outputs=outputs)
    return {key: tuple(value.shape) for key, value in built.state_dict().items()}


def _with_tuples(value: Any) -> Any:
    """Return JSON's lists as the tuples that a recipe's values have."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(each) for key, each in value.items()} if isinstance(value, dict) else value
