"""`hub`: a data set of the Hugging Face hub by its name, kept as parquet files under the data root."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from compress.datasets.base import Declaration, Stored, signature_of_text, unit_normalization
from compress.datasets.decode import ImageOptions
from compress.datasets.labelled_parquet import LabelledParquet
from compress.datasets.parquet import ClassNames, Name
from compress.datasets.parquet_files import SPLITS
from compress.datasets.parquet_folder import ParquetFolder
from compress.datasets.root import missing
from compress.datasets.text_folder import Features, TextFolder
from compress.kinds import Spec
from export.graph import InputSignature
from runtime.errors import DataError, MissingExtraError
from runtime.files import folder_atomically

log = logging.getLogger(__name__)

_BATCH_ROWS = 1000
_OLDEST = 4


class HubSplits(Spec):
    """The hub's name of each split."""

    train: Name = "train"
    validation: Name | None = None
    test: Name | None = None


class Hub(ImageOptions):
    """A data set of the Hugging Face hub: `hub: {name: fancyzhx/ag_news, input: text}`.

    The columns that are read are copied to `hub/` under the data root, once, as parquet files; from then on neither the
    network nor the package `datasets` is needed. Code that comes with a data set is never run. config, revision: the
    hub's; name a revision for what may not change. input: what the input column holds. input_column: else `text` or
    `image`. splits: the hub's names of train, validation and test; left out, those that it calls so. Without test a
    fixed stratified fifth of train is test. class_names: else those of the label column, else its distinct values.
    size, mode: of images. features: of texts.
    """

    kind = "hub"

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.\-]+(/[\w.\-]+)?$")]
    input: Literal["text", "image"]
    config: Name | None = None
    revision: Name | None = None
    input_column: Name | None = None
    label_column: Name = "label"
    splits: HubSplits | None = None
    class_names: ClassNames | None = None
    features: Features = Features()

    @field_validator("features")
    @classmethod
    def _is_of_texts(cls, features: Features, info: ValidationInfo) -> Features:
        if info.data.get("input") == "image" and features != Features():
            raise PydanticCustomError("features", "makes ids of texts, and the input is images; leave it out")
        return features

    @field_validator("input")
    @classmethod
    def _is_of_images(cls, value: str, info: ValidationInfo) -> str:
        if value == "text" and (info.data.get("size") or info.data.get("mode")):
            raise PydanticCustomError("size", "is text, and `size` and `mode` are of images; leave them out")
        return value

    def declare(self) -> Declaration:
        shape = self.shape()
        signature = InputSignature(shape=shape) if shape else None
        return Declaration(
            classes=len(self.class_names) if self.class_names else None,
            class_names=self.class_names,
            signature=signature_of_text(self.features.featuriser()) if self.input == "text" else signature,
            normalization=unit_normalization(shape[2]) if shape else None,
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self._folder(root).inspect()

    def fingerprint(self, root: Path | None) -> str:
        return self._folder(root).fingerprint()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        folder = self._folder(root)
        return Stored(
            name=self.name.rpartition("/")[2],
            class_names=folder.labels.names,
            normalization=unit_normalization(folder.image_shape[2]) if isinstance(folder, ParquetFolder) else None,
            fingerprint=folder.fingerprint(),
            splits=folder.read(cache, allowed_bad_rows),
            featuriser=folder.featuriser if isinstance(folder, TextFolder) else None,
        )

    @cached_property
    def column(self) -> str:
        """The input column."""
        return self.input_column or self.input

    def where(self, root: Path) -> Path:
        """Return the folder of the copy: one for each choice of what is copied."""
        chosen = self.model_dump(mode="json", include={"config", "revision", "label_column", "splits"})
        choice = json.dumps({**chosen, "input_column": self.column}, sort_keys=True)
        return root / "hub" / f"{self.name.replace('/', '--')}-{hashlib.sha256(choice.encode()).hexdigest()[:8]}"

    def _folder(self, root: Path | None) -> LabelledParquet:
        where = self.where(root or Path("DIR"))
        if root is None:
            problem = "no data root is named, under which a copy of it is kept"
            layout = f"  {where}/train-00000-of-00001.parquet   (edgefold writes it)"
            raise missing(f"hub: {self.name}", where.parent, problem, layout, named_by_root=True)
        if not where.is_dir():
            self._copy(where)
        if self.input == "text":
            return TextFolder(
                title=f"hub: {self.name}",
                folder=where,
                label_column=self.label_column,
                class_names=self.class_names,
                text_column=self.column,
                featuriser=self.features.featuriser(),
            )
        return ParquetFolder(
            title=f"hub: {self.name}",
            folder=where,
            label_column=self.label_column,
            class_names=self.class_names,
            image_column=self.column,
            options=self,
        )

    def _copy(self, where: Path) -> None:
        """Fetch the data set and write its columns to the folder, whole or not at all."""
        datasets = _library()
        log.info("hub: %s is fetched and copied to %s", self.name, where)
        try:
            found = datasets.load_dataset(self.name, self.config, revision=self.revision)
        except Exception as error:  # a hub that cannot be reached raises a dozen unrelated types
            raise self._unavailable(error) from error
        parts = {split: found[name] for split, name in self._names(list(found)).items()}
        for part in parts.values():
            self._require_columns(list(part.features))
        with folder_atomically(where) as folder:
            for split, part in parts.items():
                self._write(part, folder / f"{split}-00000-of-00001.parquet", datasets)

    def _names(self, there: list[str]) -> dict[str, str]:
        """Return the hub's name of each split. Raises DataError for one that it has not."""
        if self.splits is not None:
            names = {split: name for split in SPLITS if (name := getattr(self.splits, split)) is not None}
        else:
            names = {split: split for split in SPLITS if split == "train" or split in there}
        for split, name in names.items():
            if name not in there:
                raise DataError(
                    f"hub: {self.name} has no split '{name}', only {', '.join(there)}",
                    remedy=f"Say which it is: `splits: {{{split}: {there[0] if there else 'NAME'}}}`.",
                )
        return names

    def _require_columns(self, there: list[str]) -> None:
        for option, column in (("input_column", self.column), ("label_column", self.label_column)):
            if column not in there:
                raise DataError(
                    f"hub: {self.name} has no column '{column}', only {', '.join(there)}",
                    remedy=f"Say which it is: `{option}: NAME`.",
                )

    def _write(self, part: Any, path: Path, datasets: Any) -> None:
        part = part.select_columns([self.column, self.label_column])
        schema = part.features.arrow_schema  # names the classes, where the hub does
        with pq.ParquetWriter(path, schema) as writer:
            for table in part.with_format("arrow").iter(_BATCH_ROWS):
                if self.input == "image":
                    # An image may be a file beside the table; then only its path is in it.
                    table = datasets.table.embed_table_storage(table)
                writer.write_table(table.cast(schema))

    def _unavailable(self, error: Exception) -> DataError:
        words = str(error).strip().splitlines() or [""]
        offline = isinstance(error, ConnectionError | TimeoutError) or "offline" in str(error).lower()
        remedy = (
            "The hub cannot be reached from here. Run it once where it can, with the same data root, or put the data "
            "set's parquet files in a folder and read them with `text_parquet` or `parquet`."
            if offline
            else "Check name, config and revision at https://huggingface.co/datasets."
        )
        return DataError(f"hub: {self.name} cannot be fetched: {type(error).__name__}: {words[0][:300]}", remedy)


def _library() -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtraError(
            f"data of the hub needs the package 'datasets': {error}", remedy="pip install 'edgefold[hub]'"
        ) from error
    if int(datasets.__version__.split(".")[0]) < _OLDEST:
        raise MissingExtraError(
            f"datasets is version {datasets.__version__}, expected {_OLDEST} or newer: "
            f"older ones can run code that comes with a data set",
            remedy="pip install --upgrade 'edgefold[hub]'",
        )
    return datasets
