"""What is deployed, as one module: raw input → preprocessing → student → fold → class logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.fold import fold_logits
from runtime.errors import ExportError

INPUT_NAME = "input"
IMAGE_LAYOUTS = ("NHWC", "NCHW")
ID_LAYOUT = "NL"


@dataclass(frozen=True)
class InputSignature:
    """The raw input of a deployed classifier, without its batch axis.

    Images: dtype `uint8`, pixels as they come from a decoder; shape (H, W, channels) for layout NHWC, (channels, H, W)
    for NCHW. Text: dtype `int32`, ids 0 to `ids` - 1 of which `padding` fills rows up; shape (length,), layout NL.
    dynamic_length: a batch of texts may be shorter than `length`, and its logits are the same at any length that holds
    its ids. Tables: as for text, but the first `numbers` of a row are whole numbers (`export.table`), and no id is
    padding.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    layout: str = "NHWC"
    ids: int | None = None
    numbers: int = 0
    padding: int = 0
    dynamic_length: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.dtype not in ("uint8", "int32"):
            raise ExportError(f"input dtype is '{self.dtype}'; expected uint8 for images or int32 for ids")
        if (self.dtype == "int32") != (self.ids is not None):
            raise ExportError(f"input dtype is {self.dtype} and ids is {self.ids}; expected int32 with a number of ids")
        layouts = IMAGE_LAYOUTS if self.ids is None else (ID_LAYOUT,)
        if self.layout not in layouts:
            raise ExportError(f"input layout is '{self.layout}'; expected one of {', '.join(layouts)}")
        if len(self.shape) != len(self.layout) - 1 or any(size < 1 for size in self.shape):
            sizes = "three positive sizes" if self.ids is None else "one positive size"
            raise ExportError(f"input shape is {self.shape}; expected {sizes} in the order {self.layout[1:]}")
        if self.ids is not None and self.ids < 2:
            raise ExportError(f"the input has {self.ids} distinct ids; expected padding and at least one more")
        if self.numbers and (self.ids is None or not 0 < self.numbers < self.shape[0]):
            raise ExportError(
                f"numbers is {self.numbers} for shape {self.shape} of {self.dtype}; expected ids behind the numbers"
            )
        if (self.ids is None or self.numbers) and (self.padding or self.dynamic_length):
            raise ExportError("padding and dynamic_length are for ids of text")
        if self.ids is not None and not 0 <= self.padding < self.ids:
            raise ExportError(f"padding is {self.padding}; expected one of the ids, 0 to {self.ids - 1}")
        if self.dynamic_length and self.shape[0] < 2:
            raise ExportError(f"the input has {self.shape[0]} id a row; expected 2 or more where the length is dynamic")

    @classmethod
    def of_ids(cls, length: int, ids: int, *, padding: int = 0, dynamic_length: bool = False) -> InputSignature:
        """Return the signature of rows of `length` ids."""
        return cls((length,), "int32", ID_LAYOUT, ids, padding=padding, dynamic_length=dynamic_length)

    @classmethod
    def of_table(cls, numbers: int, categories: int, ids: int) -> InputSignature:
        """Return the signature of rows of so many numbers and ids."""
        return cls(shape=(numbers + categories,), dtype="int32", layout=ID_LAYOUT, ids=ids, numbers=numbers)

    def __str__(self) -> str:
        if self.numbers:
            return f"tables, {self.numbers} numbers and {self.shape[0] - self.numbers} ids a row"
        if self.ids is not None:
            return f"text, {'at most ' if self.dynamic_length else ''}{self.shape[0]} ids a row"
        return f"images of {self.height}×{self.width}×{self.channels}"

    @property
    def channels(self) -> int:
        return self.shape[self.layout.index("C") - 1]

    @property
    def height(self) -> int:
        return self.shape[self.layout.index("H") - 1]

    @property
    def width(self) -> int:
        return self.shape[self.layout.index("W") - 1]


@dataclass(frozen=True)
class Normalization:
    """x → (x * scale - mean) / std, channel by channel. mean and std are in units of x * scale."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std):
            raise ExportError(
                f"normalization has {len(self.mean)} means and {len(self.std)} deviations; "
                "expected one of each per channel"
            )
        if not all(math.isfinite(value) for value in (self.scale, *self.mean, *self.std)):
            raise ExportError(f"normalization {self} has a value that is not finite")
        if any(value <= 0 for value in self.std):
            raise ExportError(f"normalization std is {self.std}; expected positive numbers")


class Preprocess(nn.Module):
    """Raw images → normalised float32 (N, channels, H, W); in the graph, so no device does it differently.

    images: uint8 (N, H, W, channels) or (N, channels, H, W), as `signature` says. Ids (N, length) are passed on as they
    are, and have no normalization; so are rows of a table, of which the student makes its input by `export.table`.
    Raises ExportError where the normalization does not fit the input.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, signature: InputSignature, normalization: Normalization | None) -> None:
        super().__init__()
        self.signature = signature
        if signature.ids is not None:
            if normalization is not None:
                raise ExportError("ids have no normalization; expected None")
            return
        if normalization is None:
            raise ExportError(f"no normalization; expected one for {signature.channels} channels")
        if len(normalization.mean) != signature.channels:
            raise ExportError(
                f"normalization is for {len(normalization.mean)} channels, images have {signature.channels} "
                f"({signature.layout}, {signature.shape})"
            )
        self.shifts = any(normalization.mean)
        std = torch.tensor(normalization.std, dtype=torch.float64).reshape(1, -1, 1, 1)
        mean = torch.tensor(normalization.mean, dtype=torch.float64).reshape(1, -1, 1, 1)
        # One multiply and one add instead of three operations; combined in float64, so each is rounded once.
        self.register_buffer("scale", (normalization.scale / std).float())  # (1, channels, 1, 1)
        self.register_buffer("shift", (-mean / std).float())  # (1, channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        if self.signature.ids is not None:
            return images
        x = images.to(self.scale.dtype)  # before the permutation: TensorRT does not transpose uint8
        if self.signature.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)  # (N, channels, H, W)
        # Scaling to [0, 1] has nothing to subtract: one operation less in every step, and on the device.
        return x * self.scale + self.shift if self.shifts else x * self.scale


class DeployableGraph(nn.Module):
    """Raw images or ids in, class logits out: preprocessing, student and fold as one module.

    student: takes what `preprocess` gives; returns logits (N, C*S), class-major, or an object with `.logits`.
    forward returns float32 logits (N, C); with `subclass_probabilities` also the softmax over all C*S logits.
    Raises ExportError where the student's head has another width than C*S.
    """

    def __init__(
        self,
        preprocess: nn.Module,
        student: nn.Module,
        classes: int,
        subclasses: int = 1,
        subclass_probabilities: bool = False,
    ) -> None:
        super().__init__()
        if classes < 1 or subclasses < 1:
            raise ExportError(f"the head has {classes} classes × {subclasses} subclasses; expected at least 1 of each")
        self.preprocess = preprocess
        self.student = student
        self.classes = classes
        self.subclasses = subclasses
        self.subclass_probabilities = subclass_probabilities

    @property
    def output_widths(self) -> dict[str, int]:
        """Each output's name and width, in the order in which forward returns them."""
        widths = {"logits": self.classes}
        return widths | {"subclass_probabilities": self.width} if self.subclass_probabilities else widths

    @property
    def width(self) -> int:
        """C*S, the width of the student's head."""
        return self.classes * self.subclasses

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        z = logits_of(self.student(self.preprocess(images))).float()  # (N, C*S)
        if z.ndim != 2 or z.shape[1] != self.width:
            sizes = ", ".join(str(int(size)) for size in z.shape[1:])
            raise ExportError(
                f"the student gives logits of shape (N, {sizes}); expected (N, {self.width}) "
                f"for {self.classes} classes × {self.subclasses} subclasses"
            )
        logits = fold_logits(z, self.subclasses)  # (N, C)
        return (logits, z.softmax(dim=1)) if self.subclass_probabilities else logits


def logits_of(output: object) -> Tensor:
    """The logits of what a classifier returned: a tensor, or the attribute `logits`. Raises ExportError."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ExportError(f"the student returns {type(output).__name__}; expected a tensor or an object with `.logits`")
    return logits
