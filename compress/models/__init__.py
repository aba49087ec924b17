"""The model zoo: one file a family, one line a model."""

from __future__ import annotations

from compress.models.alexnet import AlexNetSpec
from compress.models.bag_mlp import BagMLPSpec
from compress.models.base import Classifier, ModelSpec, Output, Shapes, image_shape, parameter_count, shapes_of
from compress.models.mlp import MLPSpec
from compress.models.mnist_cnn import MnistCNNSpec
from compress.models.resnet import ResNet8x4Spec, ResNet32x4Spec, ResNetSpec
from compress.models.small_cnn import SmallCNNSpec
from compress.models.vgg import VGGSpec
from compress.models.wrn import WideResNetSpec

MODELS: dict[str, type[ModelSpec]] = {
    "alexnet": AlexNetSpec,
    "bag_mlp": BagMLPSpec,
    "mlp": MLPSpec,
    "mnist_cnn": MnistCNNSpec,
    "resnet": ResNetSpec,
    "resnet8x4": ResNet8x4Spec,
    "resnet32x4": ResNet32x4Spec,
    "small_cnn": SmallCNNSpec,
    "vgg": VGGSpec,
    "wrn": WideResNetSpec,
}

__all__ = ["MODELS", "Classifier", "ModelSpec", "Output", "Shapes", "image_shape", "parameter_count", "shapes_of"]
