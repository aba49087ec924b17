"""The model zoo: one file a family, one line a model."""

from __future__ import annotations

from compress.models.alexnet import AlexNetSpec
from compress.models.bag_mlp import BagMLPSpec
from compress.models.base import (
    Classifier,
    ModelSpec,
    Output,
    Shapes,
    has_binary_layers,
    image_shape,
    parameter_count,
    shapes_of,
)
from compress.models.binary_cnn import BinaryCNNSpec
from compress.models.binary_resnet import BinaryResNetSpec
from compress.models.embedding_mlp import EmbeddingMLPSpec
from compress.models.encoder import EncoderSpec
from compress.models.imagenet_resnet import ImageNetResNetSpec
from compress.models.mlp import MLPSpec
from compress.models.mnist_cnn import MnistCNNSpec
from compress.models.mobilenet import MobileNetSpec
from compress.models.mobilenet_v2 import MobileNetV2Spec
from compress.models.profile import Profile, profile_of
from compress.models.resnet import ResNet8x4Spec, ResNet32x4Spec, ResNetSpec
from compress.models.shufflenet_v1 import ShuffleNetV1Spec
from compress.models.shufflenet_v2 import ShuffleNetV2Spec
from compress.models.small_cnn import SmallCNNSpec
from compress.models.table_mlp import TableMLPSpec
from compress.models.timm import TimmSpec
from compress.models.vgg import VGGSpec
from compress.models.wrn import WideResNetSpec

MODELS: dict[str, type[ModelSpec]] = {
    "alexnet": AlexNetSpec,
    "bag_mlp": BagMLPSpec,
    "binary_cnn": BinaryCNNSpec,
    "binary_resnet": BinaryResNetSpec,
    "embedding_mlp": EmbeddingMLPSpec,
    "encoder": EncoderSpec,
    "imagenet_resnet": ImageNetResNetSpec,
    "mlp": MLPSpec,
    "mnist_cnn": MnistCNNSpec,
    "mobilenet": MobileNetSpec,
    "mobilenet_v2": MobileNetV2Spec,
    "resnet": ResNetSpec,
    "resnet8x4": ResNet8x4Spec,
    "resnet32x4": ResNet32x4Spec,
    "shufflenet_v1": ShuffleNetV1Spec,
    "shufflenet_v2": ShuffleNetV2Spec,
    "small_cnn": SmallCNNSpec,
    "table_mlp": TableMLPSpec,
    "timm": TimmSpec,
    "vgg": VGGSpec,
    "wrn": WideResNetSpec,
}

__all__ = [
    "MODELS",
    "Classifier",
    "ModelSpec",
    "Output",
    "Profile",
    "Shapes",
    "has_binary_layers",
    "image_shape",
    "parameter_count",
    "profile_of",
    "shapes_of",
]
