"""From a source to the data set that one recipe sees."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.datasets.base import (
    Dataset,
    Declaration,
    Split,
    Stored,
    unit_normalization,
)
from compress.datasets.holdout import holdout_size, stratified_holdout
from compress.datasets.root import find_root
from compress.datasets.share import share_of, share_rows
from compress.datasets.spec import VALIDATION, ChannelStatistics, DataSpec, augment_problem, decoding_problem
from compress.datasets.stream import ImageStream
from export.graph import InputSignature, Normalization
from runtime.errors import DataError, RecipeError

log = logging.getLogger(__name__)


def declare(spec: DataSpec) -> Declaration:
    """Return what is known without opening data: the classes after relabelling, the rows after the cuts."""
    return _view_of(spec, spec.source.declare())


def describe(spec: DataSpec, data_root: str | Path | None = None) -> Declaration:
    """Return the view's declaration with nothing left open, from a glance at the files.

    rows are those stored; unusable rows are found only when the data is loaded. Raises DataError for data
    that is missing or damaged, RecipeError where the recipe does not fit it.
    """
    with _unreadable_named():
        stored = spec.source.inspect(find_root(data_root, spec.root))
    assert stored.class_names is not None  # what inspect() is for
    assert stored.signature is not None
    _check_fit(spec, stored.class_names, stored.signature, streamed=bool(stored.streamed))
    return _view_of(spec, stored)


def fingerprint(spec: DataSpec, data_root: str | Path | None = None) -> str:
    """Return the sha256 hex of the source's content: the same wherever it lies, and whatever the view.

    Raises DataError when the data is not where it should be.
    """
    with _unreadable_named():
        return spec.source.fingerprint(find_root(data_root, spec.root))


def load(spec: DataSpec, *, seed: int, data_root: str | Path | None = None, cache: str | Path | None = None) -> Dataset:
    """Read the data of a recipe.

    seed: decides which rows are validation and which are of a train_fraction, and nothing else. data_root: goes before
    the recipe's root and EDGEFOLD_DATA. cache: folder for decoded images and encoded texts, None for none. Raises
    DataError for data that is missing, damaged or has more bad rows than allowed, RecipeError where the recipe does not
    fit the data.
    """
    with _unreadable_named():
        stored = spec.source.read(
            find_root(data_root, spec.root),
            cache=None if cache is None else Path(cache),
            allowed_bad_rows=spec.allowed_bad_rows,
        )
    if spec.share is not None:
        stored = share_of(stored, spec.share)
    signature = stored.signature
    streamed = isinstance(stored.splits["train"].inputs, ImageStream)
    _check_fit(spec, stored.class_names, signature, streamed=streamed)
    class_names = spec.relabel.names(stored.class_names) if spec.relabel else stored.class_names
    train, validation = _train_and_validation(spec, stored, seed)
    if spec.label_noise is not None:
        train = replace(train, labels=spec.label_noise.apply(train.labels, len(class_names)))
    _warn_of_empty_classes(stored.name, class_names, train)
    return Dataset(
        name=stored.name,
        class_names=class_names,
        hidden_names=stored.class_names if spec.relabel else stored.hidden_names,
        signature=signature,
        normalization=_normalization(spec, stored.normalization, signature),
        fingerprint=stored.fingerprint,
        train=train.in_memory(),
        validation=validation.in_memory(),
        test=_relabelled(spec, stored, "test").in_memory(),
        featuriser=stored.featuriser,
        columns=stored.columns,
        hidden_members=spec.relabel.members(len(stored.class_names)) if spec.relabel else stored.hidden_members,
    )


@contextlib.contextmanager
def _unreadable_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # no permission, a broken link, a disk error: the message names the file
        raise DataError(f"data cannot be read: {error}") from error


def _train_and_validation(spec: DataSpec, stored: Stored, seed: int) -> tuple[Split, Split]:
    train = _relabelled(spec, stored, "train")
    if spec.train_rows is not None:
        if spec.train_rows > len(train):
            raise RecipeError(
                f"data.train_rows is {spec.train_rows:,}, but train of {stored.name} has {len(train):,} rows",
                remedy="Leave it out to use all of them.",
            )
        train = train.take(slice(spec.train_rows))
    if spec.train_fraction is not None:
        train = train.take(stratified_holdout(train.labels, spec.train_fraction, seed)[1])
        if not len(train):
            raise RecipeError(f"data.train_fraction is {spec.train_fraction}, which leaves no row", "Make it larger.")
    fraction = _held_out(spec, "validation" in stored.splits)
    if fraction is None:
        return train, _relabelled(spec, stored, "validation")
    kept, held = stratified_holdout(train.labels, fraction, seed)
    if not len(kept):
        raise RecipeError(
            f"data.validation is {fraction}, which leaves none of {len(train)} rows to train on",
            remedy="Make it smaller, or train_rows larger.",
        )
    # With nothing held out the slice saves a copy of train.
    return train.take(kept if len(held) else slice(None)), train.take(held)


def _held_out(spec: DataSpec, has_own: bool) -> float | None:
    """Return the share of train to hold out; None: the source's own validation split is used."""
    if spec.validation is not None:
        return spec.validation
    return None if has_own else VALIDATION


def _relabelled(spec: DataSpec, stored: Stored, name: str) -> Split:
    split = stored.splits[name]
    if spec.relabel is None:
        return split
    labels = spec.relabel.apply(split.labels, len(stored.class_names))
    return replace(split, labels=labels, hidden=split.labels)


def _normalization(spec: DataSpec, of_source: Normalization | None, signature: InputSignature) -> Normalization | None:
    if of_source is None:
        return None
    if isinstance(spec.normalize, ChannelStatistics):
        return Normalization(scale=of_source.scale, mean=spec.normalize.mean, std=spec.normalize.std)
    if spec.normalize == "unit":
        return unit_normalization(signature.channels, scale=of_source.scale)
    return of_source


def _view_of(spec: DataSpec, source: Declaration) -> Declaration:
    names, classes = source.class_names, source.classes
    if spec.relabel is not None:
        names = spec.relabel.names(names) if names else None
        classes = spec.relabel.classes()
    normalization = source.normalization
    if source.signature is not None:
        normalization = _normalization(spec, normalization, source.signature)
    return Declaration(classes, names, source.signature, normalization, _rows(spec, source), source.streamed)


def _rows(spec: DataSpec, source: Declaration) -> dict[str, int] | None:
    rows = source.rows
    if rows is None:
        return None
    if spec.share is not None:
        rows = {split: share_rows(count, source.classes or 0, spec.share) for split, count in rows.items()}
    train = min(rows["train"], spec.train_rows or rows["train"])
    train = train if spec.train_fraction is None else holdout_size(train, spec.train_fraction)
    fraction = _held_out(spec, "validation" in rows)
    validation = rows["validation"] if fraction is None else holdout_size(train, fraction)
    if fraction is not None:
        train -= validation
    return {"train": train, "validation": validation, "test": rows["test"]}


def _check_fit(spec: DataSpec, class_names: tuple[str, ...], signature: InputSignature, *, streamed: bool) -> None:
    """Check what the schema could not know before the files were opened."""
    if len(class_names) < 2:
        raise DataError(f"the data has {len(class_names)} class, expected 2 or more: {', '.join(class_names)}")
    if spec.relabel is not None and (problem := spec.relabel.problem_with(len(class_names))):
        raise RecipeError(f"data.relabel: {problem}", remedy=f"The classes are {_numbered(class_names)}.")
    if signature.ids is not None:
        return  # what is for images only was refused with the recipe: a source of text is known to be one
    if isinstance(spec.normalize, ChannelStatistics) and len(spec.normalize.mean) != signature.channels:
        raise RecipeError(
            f"data.normalize has {len(spec.normalize.mean)} channel(s), the images have {signature.channels}",
            remedy="Give one mean and one std a channel.",
        )
    if problem := decoding_problem(spec.augment, streamed):
        raise RecipeError(f"data.augment: {problem}", remedy="Write it with the source, or leave it out.")
    if problem := augment_problem(spec.augment, signature.height, signature.width):
        raise RecipeError(f"data.augment: {problem}", remedy="Make it smaller.")


def _numbered(class_names: tuple[str, ...]) -> str:
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(class_names[:20]))
    return shown + (f" and {len(class_names) - 20} more" if len(class_names) > 20 else "")


def _warn_of_empty_classes(name: str, class_names: tuple[str, ...], train: Split) -> None:
    counts = np.bincount(train.labels, minlength=len(class_names))
    if empty := [class_names[index] for index in np.flatnonzero(counts == 0)]:
        log.warning("%s: no training rows for %d class(es): %s", name, len(empty), ", ".join(empty[:20]))
