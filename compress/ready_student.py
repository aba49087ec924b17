"""A student that was trained elsewhere as a bundle, proven on rows that come with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter

from compress import provenance
from compress.datasets.base import Split, unit_normalization
from compress.formats import FORMATS, FormatSpec, Int8Spec, opset_problem
from compress.forms import Source, form_of
from compress.kinds import OneOf, as_recipe_value
from compress.models import MODELS, Classifier, ModelSpec, has_binary_layers
from compress.ready_arguments import class_names_from, kind_from, numbers_from, rows_from, sizes_from
from compress.ready_card import ready_card
from compress.ready_weights import load_into, read_weights
from export.bundle import write_bundle
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.layers import binary_layers
from export.to_onnx import onnx_from_graph
from export.to_portable import portable_from_onnx
from export.verify import ParityReport, verify_format
from runtime.bundle import open_bundle
from runtime.errors import UsageError
from runtime.files import sha256_of_bytes, sha256_of_file
from runtime.rows import Rows

STAGE = "student"
SAMPLES = 256
PARITY_ROWS = 1000

_MODEL: TypeAdapter[Any] = TypeAdapter(Annotated[ModelSpec, OneOf("model", MODELS)])
_FORMATS: TypeAdapter[Any] = TypeAdapter(
    Annotated[tuple[Annotated[FormatSpec, OneOf("format", FORMATS)], ...], Field(min_length=1)]
)


@dataclass(frozen=True, eq=False)
class ReadyStudent:
    """A student with its weights, in evaluation mode.

    recipe: what it is made of, as text. rows: to compare its forms on; train: to calibrate with.
    """

    name: str
    key: str
    recipe: str
    spec: ModelSpec
    model: Classifier
    signature: InputSignature
    normalization: Normalization
    class_names: tuple[str, ...]
    subclasses: int
    formats: tuple[FormatSpec, ...]
    batch_sizes: tuple[int, ...]
    rows: Rows
    train: Rows | None
    opset: int | None = None


def ready_student(
    *,
    weights: Path,
    model: str,
    input: str,
    layout: str = "NHWC",
    mean: str | None = None,
    std: str | None = None,
    classes: int | None = None,
    subclasses: int = 1,
    labels: Path | None = None,
    data: Path,
    train_data: Path | None = None,
    formats: str = "onnx",
    batch_sizes: str = "1,8,64",
    name: str | None = None,
    opset: int | None = None,
) -> ReadyStudent:
    """Read all of it. Raises UsageError and DataError for what does not fit together."""
    spec: ModelSpec = kind_from(_MODEL, model, "--model")
    signature = InputSignature(sizes_from(input, "--input", "x"), "uint8", layout)
    plain = unit_normalization(signature.channels)
    numbers = {"mean": numbers_from(mean, "--mean") or plain.mean, "std": numbers_from(std, "--std") or plain.std}
    for what, values in numbers.items():
        if len(values) != signature.channels:
            raise UsageError(f"--{what} has {len(values)} numbers, and {signature} {signature.channels} channels")
    normalization = Normalization(plain.scale, **numbers)
    class_names = class_names_from(labels, classes)
    forms: tuple[FormatSpec, ...] = kind_from(_FORMATS, f"[{formats}]", "--formats")
    _check_formats(forms, spec, signature)
    if problem := opset_problem(forms, opset):
        raise UsageError(f"--opset: {problem[0]}", problem[1])
    tensors = read_weights(weights)
    try:
        built = spec.build(signature=signature, outputs=len(class_names) * subclasses)
    except ValueError as error:
        raise UsageError(f"--model {model}: {error}", "Give the input that it was trained on.") from None
    load_into(built, tensors, weights, f"{spec.kind} for {signature}, {len(class_names)} × {subclasses} logits")
    sizes = sizes_from(batch_sizes, "--batch-sizes", ",")
    identity = {
        "weights": {"file": weights.name, "sha256": sha256_of_file(weights)},
        "model": as_recipe_value(spec),
        "input": [list(signature.shape), signature.layout],
        "normalization": [normalization.scale, list(normalization.mean), list(normalization.std)],
        "classes": list(class_names),
        "subclasses": subclasses,
        "formats": [as_recipe_value(each) for each in forms],
        "batch_sizes": list(sizes),
        **({"opset": opset} if opset else {}),
    }
    return ReadyStudent(
        name=name or weights.stem,
        key=sha256_of_bytes(json.dumps(identity, sort_keys=True).encode()),
        recipe=provenance.yaml_text({"name": name or weights.stem, **identity}),
        spec=spec,
        model=built.eval(),
        signature=signature,
        normalization=normalization,
        class_names=class_names,
        subclasses=subclasses,
        formats=forms,
        batch_sizes=sizes,
        rows=rows_from(data, signature, len(class_names)),
        train=rows_from(train_data, signature, len(class_names)) if train_data else None,
        opset=opset,
    )


def write_ready_bundle(student: ReadyStudent, folder: Path, notify: Callable[[str], None]) -> list[ParityReport]:
    """Write the bundle, and compare every form with torch on the rows. A missed gate is only reported."""
    rows, train = _split(student, notify)
    preprocess = Preprocess(student.signature, student.normalization)
    graph = DeployableGraph(preprocess, student.model, len(student.class_names), student.subclasses).eval()
    logits = _logits(graph, rows.inputs)
    correct = int((logits.argmax(1) == rows.labels).sum())
    metrics = {"test_accuracy": correct / len(rows), "test_rows": len(rows)}
    metadata = {
        "edgefold.name": student.name,
        "edgefold.stage": STAGE,
        "edgefold.recipe_key": student.key,
        "edgefold.class_names": json.dumps(student.class_names),
        "edgefold.metrics": json.dumps(metrics),
        provenance.KEY: student.recipe,
    }
    simulated, layers = onnx_from_graph(graph, student.signature, metadata=metadata), binary_layers(graph)
    source = Source(simulated, layers, train, notify, student.opset)
    made = [form_of(spec, source) for spec in student.formats if spec.kind != "onnx"]
    forms = [each.form for each in made]
    onnx = source.written(portable_from_onnx(simulated, layers=layers) if layers else simulated)
    first = slice(0, SAMPLES)
    write_bundle(
        folder,
        name=student.name,
        stage=STAGE,
        recipe_key=student.key,
        classes=len(student.class_names),
        subclasses=student.subclasses,
        class_names=student.class_names,
        signature=student.signature,
        onnx=onnx,
        forms=forms,
        inputs=rows.inputs[first],
        labels=rows.labels[first],
        row_ids=rows.row_ids[first],
        logits=logits[first],
        metrics=metrics,
        batch_sizes=student.batch_sizes,
        card=ready_card(student, onnx, "fp32", forms, correct=correct, total=len(rows)),
    )
    bundle = open_bundle(folder)
    few = slice(0, PARITY_ROWS)
    return [
        verify_format(
            bundle, form, rows.inputs[few], logits[few], rows.labels[few], bundle.batch_sizes, row_ids=rows.row_ids[few]
        )
        for form in bundle.formats
    ]


def _split(student: ReadyStudent, notify: Callable[[str], None]) -> tuple[Rows, Split]:
    """Return the rows to compare on and those to calibrate with, which are never the same."""
    rows, train = student.rows, student.train
    if train is None and any(isinstance(spec, Int8Spec) for spec in student.formats):
        if len(rows) < 2:
            raise UsageError("--data has one row, and INT8 needs others to calibrate with", "Give --train-data.")
        order = np.random.default_rng(0).permutation(len(rows))
        half = len(rows) // 2
        train, rows = _take(rows, np.sort(order[:half])), _take(rows, np.sort(order[half:]))
        notify(f"int8: {half:,} rows of --data calibrate, the other {len(rows):,} verify; all would with --train-data")
    train = train or rows
    return rows, Split(train.inputs, train.labels, None, train.row_ids)


def _take(rows: Rows, positions: np.ndarray) -> Rows:
    return Rows(rows.inputs[positions], rows.labels[positions], rows.row_ids[positions])


@torch.no_grad()
def _logits(graph: DeployableGraph, inputs: np.ndarray) -> np.ndarray:
    parts = []
    for first in range(0, len(inputs), SAMPLES):
        part = graph(torch.from_numpy(np.ascontiguousarray(inputs[first : first + SAMPLES])))
        assert isinstance(part, torch.Tensor)  # no subclass_probabilities
        parts.append(part)
    return torch.cat(parts).numpy()


def _check_formats(forms: tuple[FormatSpec, ...], spec: ModelSpec, signature: InputSignature) -> None:
    kinds = [each.kind for each in forms]
    if "onnx" not in kinds:
        raise UsageError(f"--formats is {', '.join(kinds)}; a bundle always has onnx", "Add onnx.")
    try:
        binary = has_binary_layers(spec, signature=signature, outputs=2)
    except ValueError:
        return  # said where the model is built
    wrong = [each.kind for each in forms if each.students == ("real" if binary else "binary")]
    if wrong:
        what = "binary layers" if binary else "no binary layers"
        raise UsageError(f"--formats has {', '.join(wrong)}, and {spec.kind} has {what}", "Leave it out.")
