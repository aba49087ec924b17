"""The model zoo: one file a family, one line a model."""

from __future__ import annotations

from compress.models.bag_mlp import BagMLPSpec
from compress.models.base import Classifier, ModelSpec, Output, Shapes, image_shape, parameter_count, shapes_of
from compress.models.mlp import MLPSpec
from compress.models.mnist_cnn import MnistCNNSpec
from compress.models.resnet import ResNetSpec
from compress.models.small_cnn import SmallCNNSpec

MODELS: dict[str, type[ModelSpec]] = {
    "bag_mlp": BagMLPSpec,
    "mlp": MLPSpec,
    "mnist_cnn": MnistCNNSpec,
    "resnet": ResNetSpec,
    "small_cnn": SmallCNNSpec,
}

__all__ = ["MODELS", "Classifier", "ModelSpec", "Output", "Shapes", "image_shape", "parameter_count", "shapes_of"]
