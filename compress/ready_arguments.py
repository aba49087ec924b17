"""What `edgefold export --weights` is given on the command line, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from compress.recipe_report import did_you_mean
from compress.yaml_document import read_document
from export.graph import InputSignature
from runtime.errors import DataError, UsageError
from runtime.rows import Rows, read_rows


def kind_from(adapter: TypeAdapter[Any], text: str, argument: str) -> Any:
    document = read_document(text)
    if document.problems:
        raise UsageError(f"{argument} {text}: {document.problems[0].message}", document.problems[0].remedy)
    try:
        return adapter.validate_python(document.value)
    except ValidationError as error:
        said, remedies = [], []
        for item in error.errors(include_url=False):
            where = ".".join(map(str, item["loc"]))
            said.append(f"{where}: {item['msg']}" if where else item["msg"])
            if known := item.get("ctx", {}).get("known"):
                remedies.append(did_you_mean(item["ctx"]["name"].partition(":")[0], known))
        remedy = remedies[0] if remedies else "Write it as in a recipe."
        raise UsageError(f"{argument} {text}: {'; '.join(said)}", remedy) from None


def sizes_from(text: str, argument: str, separator: str) -> tuple[int, ...]:
    parts = text.lower().split(separator)
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{argument} is '{text}'; expected positive sizes, such as 32{separator}32{separator}3")
    return tuple(map(int, parts))


def numbers_from(text: str | None, argument: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(","))) if text else ()
    except ValueError:
        raise UsageError(f"{argument} is '{text}'; expected numbers, such as 0.49,0.48,0.45") from None


def class_names_from(labels: Path | None, classes: int | None) -> tuple[str, ...]:
    if labels is None:
        if classes is None:
            raise UsageError("neither --classes nor --labels is given", "Give one: how many, or a file of their names.")
        return tuple(map(str, range(classes)))
    try:
        names = tuple(labels.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{labels} cannot be read: {error}", "Write one class a line.") from None
    if classes is not None and len(names) != classes:
        raise UsageError(f"{labels} has {len(names)} lines, and --classes is {classes}")
    if not names:
        raise UsageError(f"{labels} has no lines", "Write one class a line.")
    return names


def rows_from(path: Path, signature: InputSignature, classes: int) -> Rows:
    rows = read_rows(path, numbered=False)
    if rows.inputs.shape[1:] != signature.shape or rows.inputs.dtype != signature.dtype or not len(rows):
        expected = f"{signature.dtype} [N, {', '.join(map(str, signature.shape))}], N >= 1"
        raise DataError(f"{path}: inputs are {rows.inputs.dtype} {list(rows.inputs.shape)}, expected {expected}")
    if rows.labels.shape != (len(rows),) or rows.labels.dtype.kind not in "iu":
        came = f"{rows.labels.dtype} {list(rows.labels.shape)}"
        raise DataError(f"{path}: labels are {came}, expected whole numbers [{len(rows)}]")
    least, most = int(rows.labels.min()), int(rows.labels.max())
    if least < 0 or most >= classes:
        raise DataError(f"{path}: labels go from {least} to {most}, expected 0 to {classes - 1}")
    return Rows(rows.inputs, rows.labels.astype(np.int64), rows.row_ids)
