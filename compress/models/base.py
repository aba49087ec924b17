"""What every model gives, and how a recipe describes one."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from compress.kinds import Spec, as_recipe_value
from export.graph import InputSignature
from export.layers import binary_layers

T = TypeVar("T", covariant=True)

Init = Literal["glorot", "he", "he_fan_out", "torch"]


class Output(NamedTuple):
    """What a forward pass returns.

    logits: (N, C*S), class-major (`export.fold`).
    embedding: (N, D), the input of the classifier.
    features: the stage maps in depth order, (N, channels, h, w) or (N, width); `feature_names` of the model names them.
    """

    logits: Tensor
    embedding: Tensor
    features: tuple[Tensor, ...]


class Classifier(nn.Module):
    """Base of the models here: stages that give a feature map each, an embedding, and the Linear layer `classifier`.

    A model is `stage` for every one of `feature_names`, then `embed`, then `classifier`. Modules in `stages` serve for
    `stage`, and the mean over positions for `embed`, where a family does not define its own.
    """

    stages: nn.ModuleList
    classifier: nn.Linear
    feature_names: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Output:
        features: list[Tensor] = []
        for i in range(len(self.feature_names)):
            x = self.stage(x, i)
            features.append(x)
        embedding = self.embed(x)
        return Output(self.classifier(embedding), embedding, tuple(features))

    def from_feature(self, x: Tensor, index: int) -> Tensor:
        """Return the logits (N, C*S) that the layers behind feature map `index` make of x, shaped like that map."""
        for i in range(index + 1, len(self.feature_names)):
            x = self.stage(x, i)
        logits: Tensor = self.classifier(self.embed(x))
        return logits

    def stage(self, x: Tensor, index: int) -> Tensor:
        """Return feature map `index` from the map before it, or from the input where it is the first."""
        mapped: Tensor = self.stages[index](x)
        return mapped

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding (N, D) from the last feature map, or from the input where there is none."""
        return x.mean(dim=(2, 3))


class ModelSpec(Spec):
    """Options of one model family. `build` takes what only the data and the stage know."""

    init: Init = "torch"

    def build(self, *, signature: InputSignature, outputs: int) -> Classifier:
        """Return the model for inputs of `signature`, preprocessed (`export.graph`), with `outputs` = C*S logits.

        Raises ValueError when the family takes another kind of input, or the image is too small for its poolings.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def load_pretrained(self, model: Classifier) -> None:
        """Put published weights into a model that `build` made and that is to be trained; most families have none."""

    def takes_weights_of(self, other: ModelSpec) -> bool:
        """Return whether a model of `other` has the parameters of this one, so that a stage can start from it."""
        return self == other

    def outside(self) -> Hashable:
        """Return the state of what decides the model's form beside its options: files, packages. Most have none."""
        return None

    def resolved(self) -> dict[str, Any]:
        """Return `{kind: {options}}` as a stage's key has it; files that decide the weights by content, not by name."""
        return as_recipe_value(self)


def initialise(model: nn.Module, init: Init) -> None:
    """Set weights of every convolution and linear layer, from the global random state.

    glorot: uniform in ±sqrt(6 / (fan_in + fan_out)), zero biases (Glorot & Bengio 2010; the default of Keras, and so
    of the papers whose code is in TensorFlow). he: normal with variance 2 / fan_in, zero biases (He et al. 2015).
    he_fan_out: convolutions normal with variance 2 / fan_out, linear layers as PyTorch makes them, zero biases (the
    published code of wide residual networks and of the CRD benchmark). torch: left as PyTorch makes them.
    """
    if init == "torch":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if init == "glorot":
                nn.init.xavier_uniform_(module.weight)
            elif init == "he_fan_out":
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def image_shape(signature: InputSignature) -> tuple[int, int, int]:
    """Return (channels, H, W), whatever the layout of the stored images. Raises ValueError for text and tables."""
    if signature.ids is not None:
        raise ValueError(f"the model takes images, and the data is {signature}; bag_mlp takes text, table_mlp tables")
    return signature.channels, signature.height, signature.width


def id_shape(signature: InputSignature) -> tuple[int, int]:
    """Return (length, number of distinct ids) of text. Raises ValueError for images and tables."""
    if signature.numbers:
        raise ValueError(f"the model takes text, and the data is {signature}; table_mlp takes tables")
    if signature.ids is None:
        raise ValueError(f"the model takes text, and the data is {signature}; mlp and the cnn models take images")
    return signature.shape[0], signature.ids


def table_shape(signature: InputSignature) -> tuple[int, int, int]:
    """Return (numbers, categories, number of distinct ids) of a table. Raises ValueError for images and text."""
    if not signature.numbers or signature.ids is None:
        raise ValueError(f"the model takes tables, and the data is {signature}; mlp takes images, bag_mlp text")
    return signature.numbers, signature.shape[0] - signature.numbers, signature.ids


def without_tail(ids: Tensor, padding: int, *, least: int = 0) -> Tensor:
    """Return ids (N, L) without the columns after the longest text, `least` of them at least."""
    used = (ids != padding).any(0).nonzero()
    return ids[:, : max(int(used[-1]) + 1 if len(used) else 0, least)]


def model_input(signature: InputSignature, rows: int) -> Tensor:
    """Return zeros of the shape and dtype that a model of `signature` is given."""
    if signature.ids is not None:
        return torch.zeros(rows, *signature.shape, dtype=torch.int32)
    return torch.zeros(rows, *image_shape(signature))


@dataclass(frozen=True)
class Shapes:
    """What a model gives, without the batch axis.

    embedding: D. features: (channels, h, w) or (width,) of each map in depth order; feature_names names them.
    """

    embedding: int
    features: tuple[tuple[int, ...], ...]
    feature_names: tuple[str, ...]


class OfModel(Protocol[T]):
    """A function of a model that only shapes decide."""

    def __call__(self, spec: ModelSpec, *, signature: InputSignature, outputs: int) -> T: ...


def once_a_model(compute: OfModel[T]) -> OfModel[T]:
    """Remember what `compute` gives: recipes of many stages ask again and again."""

    @functools.lru_cache(maxsize=1024)
    def remembered(outside: Hashable, spec: ModelSpec, signature: InputSignature, outputs: int) -> T:
        return compute(spec, signature=signature, outputs=outputs)

    @functools.wraps(compute)
    def of_model(spec: ModelSpec, *, signature: InputSignature, outputs: int) -> T:
        return remembered(spec.outside(), spec, signature, outputs)

    return of_model


@once_a_model
def shapes_of(spec: ModelSpec, *, signature: InputSignature, outputs: int) -> Shapes:
    """Return the shapes of a model's outputs, without allocating or computing anything."""
    with torch.device("meta"):
        model = spec.build(signature=signature, outputs=outputs).eval()
        output = model(model_input(signature, 2))
    features = tuple(tuple(feature.shape[1:]) for feature in output.features)
    return Shapes(output.embedding.shape[1], features, model.feature_names)


@once_a_model
def has_binary_layers(spec: ModelSpec, *, signature: InputSignature, outputs: int) -> bool:
    """Return whether a model has layers that can be packed."""
    with torch.device("meta"):
        model = spec.build(signature=signature, outputs=outputs)
    return bool(binary_layers(model))


@once_a_model
def parameter_count(spec: ModelSpec, *, signature: InputSignature, outputs: int) -> int:
    """Return the number of trainable parameters, without allocating them."""
    with torch.device("meta"):
        model = spec.build(signature=signature, outputs=outputs)
    return sum(parameter.numel() for parameter in model.parameters())
