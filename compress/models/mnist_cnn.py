"""The MNIST teacher of the subclass distillation paper."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature


class MnistCNN(Classifier):
    """3×3×32, pool 2, 3×3×64, pool 2, dropout, 128, dropout, classifier.

    Müller, Kornblith & Hinton 2020, section 4.4, as their published notebook has it: the second convolution is
    3×3 (the text prints 2×2) and neither convolution pads.
    """

    feature_names = ("conv1", "conv2")

    def __init__(self, input_shape: tuple[int, int, int], outputs: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = input_shape
        pooled = [((size - 2) // 2 - 2) // 2 for size in (height, width)]
        if min(pooled) < 1:
            raise ValueError(f"mnist_cnn needs images of at least 10×10, came {height}×{width}")
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(64 * pooled[0] * pooled[1], 128)
        self.classifier = nn.Linear(128, outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        convolution = self.conv2 if index else self.conv1
        return F.max_pool2d(F.relu(convolution(x)), 2)  # (N, 32, 13, 13), then (N, 64, 5, 5), from 28×28

    def embed(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.hidden(self.dropout(x.flatten(1))))
        embedding: Tensor = self.dropout(hidden)  # (N, 128)
        return embedding


class MnistCNNSpec(ModelSpec):
    """The subclass distillation paper's MNIST teacher: two convolutions, 128 hidden units, dropout."""

    kind = "mnist_cnn"

    # The published results hang on Keras' initialisation, so it is this model's default.
    init: Init = "glorot"
    dropout: float = Field(0.5, ge=0, lt=1)

    def build(self, *, signature: InputSignature, outputs: int) -> MnistCNN:
        model = MnistCNN(image_shape(signature), outputs, self.dropout)
        initialise(model, self.init)
        return model
