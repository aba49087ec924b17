"""What a data set is, before and after its files are opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from compress.datasets.arrays import Int32Array, Int64Array, Positions, Texts, UInt8Array
from compress.datasets.stream import ImageStream
from export.graph import InputSignature, Normalization
from runtime.table import HashedColumns
from runtime.text import HashedNgrams

# The finer classes of each class.
Members = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split.

    inputs: uint8 (N, H, W, channels), as decoded, or int32 (N, length), ids of a text's n-grams or a table's row. A
    stream of images decodes what is asked for; an array and a stream give the same for an index.
    labels: int64 (N,), the class of the recipe's view.
    hidden: int64 (N,), the class as stored where a view regroups the classes, or a finer one that the source has for
    analysis, else None.
    row_ids: int64 (N,), ascending; the row's index in the split as it is stored. Dropped rows leave gaps.
    texts: (N,) strings as stored, None for images, and for train of sets whose texts are not held in memory.
    """

    inputs: UInt8Array | Int32Array | ImageStream
    labels: Int64Array
    hidden: Int64Array | None
    row_ids: Int64Array
    texts: Texts | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Positions) -> Split:
        """Return the rows at `positions`; an index array copies, a slice and a stream do not."""
        inputs = self.inputs
        return Split(
            inputs=inputs.take(positions) if isinstance(inputs, ImageStream) else inputs[positions],
            labels=self.labels[positions],
            hidden=None if self.hidden is None else self.hidden[positions],
            row_ids=self.row_ids[positions],
            texts=None if self.texts is None else self.texts[positions],
        )

    def in_memory(self) -> Split:
        """Return the split with writable inputs: torch.from_numpy warns of a read-only memory map. A stream stays."""
        if isinstance(self.inputs, ImageStream):
            return self
        return self if self.inputs.flags.writeable else replace(self, inputs=self.inputs.copy())


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as one recipe sees it. Model choice reads `validation`; only the final figures read `test`.

    hidden_names: names of the classes that `Split.hidden` counts, None where there are none. hidden_members: those of
    each class.
    fingerprint: sha256 hex of the source's content, the same wherever the files lie.
    featuriser: makes the ids of a text; then there is no normalization. None for images. columns: the same for a table.
    """

    name: str
    class_names: tuple[str, ...]
    hidden_names: tuple[str, ...] | None
    signature: InputSignature
    normalization: Normalization | None
    fingerprint: str
    train: Split
    validation: Split
    test: Split
    featuriser: HashedNgrams | None = None
    columns: HashedColumns | None = None
    hidden_members: Members | None = None

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Declaration:
    """What is known without opening data; None where only the files can tell.

    rows: rows of each split by its name. streamed: whether images are decoded when they are asked for.
    """

    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    signature: InputSignature | None = None
    normalization: Normalization | None = None
    rows: dict[str, int] | None = None
    streamed: bool | None = False


@dataclass(frozen=True, eq=False)
class Stored:
    """What a source reads: its splits as stored, with usable rows only and the original labels.

    splits: "train" and "test" always, "validation" where the source has one.
    hidden_names, hidden_members: of the finer classes that the splits have as `hidden`, None where they have none.
    normalization: the published channel statistics, or scaling to [0, 1] where there are none; None for text.
    featuriser: what made the ids of the texts, None for images. columns: what made the rows of a table.
    """

    name: str
    class_names: tuple[str, ...]
    normalization: Normalization | None
    fingerprint: str
    splits: Mapping[str, Split]
    featuriser: HashedNgrams | None = None
    columns: HashedColumns | None = None
    hidden_names: tuple[str, ...] | None = None
    hidden_members: Members | None = None

    @property
    def signature(self) -> InputSignature:
        if self.featuriser is not None:
            return signature_of_text(self.featuriser)
        if self.columns is not None:
            return signature_of_table(self.columns)
        return InputSignature(shape=self.splits["train"].inputs.shape[1:])


class Source(Protocol):
    """One kind of data: a `compress.kinds.Spec` with the ways to open what it names.

    declare: what is known without files. inspect: the same with what a glance at the files adds; classes,
    signature, normalization (of images) and rows are then known. fingerprint: sha256 hex of the content, without
    decoding; the same wherever the files lie. read: everything.

    `root` is the folder that --data-root, the recipe or EDGEFOLD_DATA names, or None. Missing, truncated or
    corrupt files are a DataError. More than `allowed_bad_rows` unusable rows (all splits together) are a
    DataError too.
    """

    kind: ClassVar[str]

    def declare(self) -> Declaration: ...

    def inspect(self, root: Path | None) -> Declaration: ...

    def fingerprint(self, root: Path | None) -> str: ...

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored: ...


def unit_normalization(channels: int, *, scale: float = 1 / 255) -> Normalization:
    """Return the normalization that only scales to [0, 1]."""
    return Normalization(scale=scale, mean=(0.0,) * channels, std=(1.0,) * channels)


def signature_of_text(featuriser: HashedNgrams) -> InputSignature:
    """Return the signature of the rows that `featuriser` makes."""
    return InputSignature.of_ids(featuriser.length, featuriser.buckets)


def signature_of_table(columns: HashedColumns) -> InputSignature:
    """Return the signature of the rows that `columns` makes."""
    return InputSignature.of_table(columns.numbers, columns.categories, columns.buckets)
