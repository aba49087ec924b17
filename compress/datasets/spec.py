"""The `data:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from compress.datasets.augment import AUGMENTATIONS, Augmentation, in_decoding, of_batches
from compress.datasets.base import Declaration, Source
from compress.datasets.label_noise import LabelNoise
from compress.datasets.relabel import Relabel
from compress.datasets.sources import SOURCES
from compress.kinds import OneOf, Spec

# Share of train that is held out where neither the recipe nor the source says which rows are validation.
VALIDATION = 0.1


class ChannelStatistics(Spec):
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not self.mean or len(self.mean) != len(self.std):
            raise PydanticCustomError(
                "channels",
                "{means} mean(s) and {stds} std(s); expected one each a channel",
                {"means": len(self.mean), "stds": len(self.std)},
            )
        return self


class SkipAtMost(Spec):
    """Drop unusable rows, as long as there are no more than this in all splits together."""

    skip_at_most: Annotated[int, Field(ge=0)]


def _word_or_mapping(value: Any) -> str:
    return "word" if isinstance(value, str) else "mapping"


# Discriminated, so that a wrong word is answered with the words and a wrong mapping with its own keys.
Normalize = Annotated[
    Annotated[Literal["dataset", "unit"], Tag("word")] | Annotated[ChannelStatistics, Tag("mapping")],
    Discriminator(_word_or_mapping),
]
BadRows = Annotated[
    Annotated[Literal["refuse"], Tag("word")] | Annotated[SkipAtMost, Tag("mapping")],
    Discriminator(_word_or_mapping),
]


class DataSpec(Spec):
    """Which data, and what of it a recipe sees.

    root: folder that holds the named sets, unless --data-root names one. share: of the rows of every split, class by
    class, a few of each at least; what `--scale` sets. relabel: regroup the classes.
    validation: share of train held out by seed, stratified by the view's label. Left out, a source's own
    validation split is used, and a tenth of train where it has none; written out, it always cuts train, and a
    stored validation split is not used. train_rows: the first rows of train, before validation is cut.
    train_fraction: a share of each class of them, by seed, before validation is cut. label_noise: wrong labels in what
    is left for training; validation keeps its own.
    normalize: `dataset` for the published statistics (scaling to [0, 1] where there are none), `unit` for
    scaling to [0, 1], or statistics of one's own. augment: changes of training images, in order; text and tables have
    neither. What is made while images are decoded comes first, and needs a source that streams.
    bad_rows: what to do about rows that cannot be used.
    """

    source: Annotated[Source, OneOf("data set", SOURCES)]
    root: Annotated[str, Field(min_length=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    relabel: Relabel | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] | None = None
    train_rows: Annotated[int, Field(ge=1)] | None = None
    train_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    label_noise: LabelNoise | None = None
    normalize: Normalize = "dataset"
    augment: tuple[Annotated[Augmentation, OneOf("augmentation", AUGMENTATIONS)], ...] = ()
    bad_rows: BadRows = "refuse"

    @property
    def allowed_bad_rows(self) -> int:
        return self.bad_rows.skip_at_most if isinstance(self.bad_rows, SkipAtMost) else 0

    # What a source declares is checked here, so that the problem stands at its line of the recipe; what only
    # its files can tell is checked when they are read (`compress.datasets.view`).

    @field_validator("relabel")
    @classmethod
    def _fits_the_classes(cls, relabel: Relabel | None, info: ValidationInfo) -> Relabel | None:
        classes = _declared(info).classes
        if relabel is not None and classes is not None and (problem := relabel.problem_with(classes)):
            raise PydanticCustomError("relabel", "{problem}", {"problem": problem})
        return relabel

    @field_validator("train_rows")
    @classmethod
    def _there_are_so_many(cls, train_rows: int | None, info: ValidationInfo) -> int | None:
        rows = _declared(info).rows
        if train_rows is not None and rows is not None and train_rows > rows["train"]:
            raise PydanticCustomError(
                "train_rows",
                "came {came}, but train has {rows} rows",
                {"came": train_rows, "rows": rows["train"]},
            )
        return train_rows

    @field_validator("normalize")
    @classmethod
    def _fits_the_channels(cls, normalize: Normalize, info: ValidationInfo) -> Normalize:
        signature = _declared(info).signature
        if signature and signature.ids is not None:
            if normalize != "dataset":
                raise PydanticCustomError("normalize", f"scales images, and the data is {signature}; leave it out")
            return normalize
        if isinstance(normalize, ChannelStatistics) and signature and len(normalize.mean) != signature.channels:
            raise PydanticCustomError(
                "channels",
                "has {came} channel(s), but the images have {channels}",
                {"came": len(normalize.mean), "channels": signature.channels},
            )
        return normalize

    @field_validator("augment")
    @classmethod
    def _stays_in_the_image(cls, augment: tuple[Augmentation, ...], info: ValidationInfo) -> tuple[Augmentation, ...]:
        signature = _declared(info).signature
        if signature and signature.ids is not None:
            if augment:
                raise PydanticCustomError("augment", f"changes images, and the data is {signature}; leave it out")
            return augment
        problem = decoding_problem(augment, _declared(info).streamed)
        if problem is None and signature is not None:
            problem = augment_problem(augment, signature.height, signature.width)
        if problem is not None:
            raise PydanticCustomError("augment", "{problem}", {"problem": problem})
        return augment


def augment_problem(augment: tuple[Augmentation, ...], height: int, width: int) -> str | None:
    """Return why an augmentation does not suit images of (height, width), or None."""
    for spec in augment:
        if spec.reach >= min(height, width):
            return f"{spec.kind} moves by up to {spec.reach} pixels, all of a {height}x{width} image"
    return None


def decoding_problem(augment: tuple[Augmentation, ...], streamed: bool | None) -> str | None:
    """Return why what is made while images are decoded cannot be, or None. streamed: None where that is not known."""
    if (spec := in_decoding(augment)) is None:
        return None
    if spec is not augment[0] or len(of_batches(augment)) < len(augment) - 1:
        return f"{spec.kind} is made while images are decoded: expected it once, before the others"
    if streamed is False:
        return f"{spec.kind} is made while images are decoded, and those here are held; `stream: yes` is what it needs"
    return None


def _declared(info: ValidationInfo) -> Declaration:
    # A source that is wrong itself is missing here, and has its own problem in the report.
    source = info.data.get("source")
    return source.declare() if source is not None else Declaration(streamed=None)
