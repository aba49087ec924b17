"""analysis.json: the measures of a run's stages and the points of their plots. What is there and current is reused."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

from compress.analysis.calibration import reliability
from compress.analysis.measures import (
    Measures,
    cluster_measures,
    logit_histograms,
    prediction_measures,
    subclass_measures,
)
from compress.analysis.outputs import OutputsOfRun
from compress.analysis.projections import project
from compress.analysis.transfer import Transfer
from compress.artifact import versions
from compress.stages import Stages
from runtime.files import json_text, write_atomically

# Raised when the same stage would get other figures.
FORMAT_VERSION = 1
FILE = "analysis.json"

Record = dict[str, Any]


def analyse_run(
    run: Stages,
    stages: Sequence[str],
    *,
    plotted: Sequence[str] = (),
    transfer: Transfer | None = None,
    outputs: OutputsOfRun | None = None,
) -> dict[str, Any]:
    """Measure trained stages, place the points of those that are plotted, and write analysis.json.

    Returns its content. A stage's record that is there and of the same key is kept, and what it lacks is added, so
    that the file gathers what several commands asked for; stages that the recipe no longer has are dropped.
    """
    outputs = outputs or OutputsOfRun(run)
    kept = _kept_records(run)
    records = dict(kept)
    for name in stages:
        records[name] = _completed(kept.get(name), outputs, name, name in plotted, transfer)
    document = {
        "format_version": FORMAT_VERSION,
        "recipe": run.plan.name,
        "settings": dict(run.plan.variant.settings),
        "seed": run.plan.variant.seed,
        "class_names": list(run.dataset.class_names),
        "hidden_names": list(run.dataset.hidden_names) if run.dataset.hidden_names else None,
        "stages": {stage.name: records[stage.name] for stage in run.plan.stages if stage.name in records},
    }
    text = json_text(document)
    path = run.folder / FILE
    if not path.exists() or path.read_bytes() != text.encode():
        write_atomically(path, text)
    return document


def _document(run: Stages) -> dict[str, Any] | None:
    try:
        document = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        return document if document["format_version"] == FORMAT_VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kept_records(run: Stages) -> dict[str, Record]:
    """Return the records that are there and of the stages as they are planned now."""
    keys = {stage.name: stage.key for stage in run.plan.stages}
    try:
        stages = (_document(run) or {"stages": {}})["stages"]
        return {name: record for name, record in stages.items() if record["key"] == keys.get(name)}
    except (KeyError, TypeError, AttributeError):
        return {}


def _completed(
    record: Record | None, outputs: OutputsOfRun, name: str, plotted: bool, transfer: Transfer | None
) -> Record:
    if record is None:
        outputs.run.notify(f"analysing {name}")
        record = _measured(outputs, name)
    if plotted and record["projections"] is None:
        outputs.run.notify(f"placing the embeddings of {name} in two dimensions")
        record = {**record, "projections": _projected(outputs, name)}
    if transfer is not None and transfer.key not in record["transfer"]:
        outputs.run.notify(f"fitting a linear probe of {name} on {transfer.name}")
        record = {**record, "transfer": {**record["transfer"], transfer.key: transfer(outputs.run, name)}}
    return record


def _measured(outputs: OutputsOfRun, name: str) -> Record:
    run = outputs.run
    stage, test = run.plan.stage(name), run.dataset.test
    student, teacher = outputs(name), outputs.of_teacher(name)
    found = [
        prediction_measures(student, teacher, test.labels),
        cluster_measures(
            student,
            teacher,
            labels=test.labels,
            classes=run.dataset.classes,
            hidden=test.hidden,
            hidden_labels=len(run.dataset.hidden_names or ()),
        ),
        subclass_measures(student, test.hidden, run.dataset.hidden_members),
    ]
    values = {key: value for measures in found for key, value in measures.values.items()}
    missing = {key: reason for measures in found for key, reason in measures.missing.items()}
    return {
        "key": stage.key,
        "teacher": teacher.stage if teacher else None,
        "rows": len(test),
        "versions": {**versions(), "scikit-learn": importlib.metadata.version("scikit-learn")},
        "test": Measures(values, missing).to_json(),
        "validation": _on_validation(outputs, name),
        "reliability": reliability(student.class_probabilities, test.labels).to_json(),
        "logits": logit_histograms(student, teacher),
        "projections": None,
        "transfer": {},
    }


def _on_validation(outputs: OutputsOfRun, name: str) -> dict[str, Any] | None:
    validation = outputs.run.dataset.validation
    if not len(validation):
        return None
    student, teacher = outputs(name, "validation"), outputs.of_teacher(name, "validation")
    return {"rows": len(validation), **prediction_measures(student, teacher, validation.labels).to_json()}


def _projected(outputs: OutputsOfRun, name: str) -> dict[str, Any]:
    run, output = outputs.run, outputs(name)
    names = logit_names(run.dataset.class_names, output.subclasses)
    return project(
        output.logits,
        output.embedding,
        run.model(name).classifier.weight.detach().cpu().double().numpy(),
        labels=run.dataset.test.labels,
        hidden=run.dataset.test.hidden,
        subclasses=output.subclasses,
        names=names,
    )


def logit_names(class_names: Sequence[str], subclasses: int) -> list[str]:
    """Return a name for each of C*S logits, as the gallery writes them: "cat · 1"."""
    if subclasses == 1:
        return list(class_names)
    return [f"{name} · {index + 1}" for name in class_names for index in range(subclasses)]
