"""`edgefold analyse`: trains what is missing, analyses every run of a recipe, and draws the plots of every stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.analysis import plots
from compress.analysis.record import FILE, Record, analyse_run
from compress.analysis.table import Line, lines
from compress.analysis.transfer import Transfer
from compress.artifact import locked
from compress.plan import Plan
from compress.progress import Notify
from compress.stages import Settings, Stages
from compress.summary import variant_name
from runtime.files import remove_leftovers, write_atomically

PLOT_FOLDER = "analysis"


@dataclass(frozen=True)
class VariantAnalysis:
    """The measures of one variant over its seeds. documents: each seed's analysis.json by its path."""

    variant: str
    stages: tuple[str, ...]
    lines: tuple[Line, ...]
    documents: dict[Path, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "summary": {
                stage: {line.metric.name: line.figures[column].to_json() for line in self.lines}
                for column, stage in enumerate(self.stages)
            },
            "runs": [{"path": str(path), **document} for path, document in self.documents.items()],
        }


def analyse_plans(
    plans: Sequence[Plan],
    settings: Settings,
    notify: Notify,
    *,
    only: str | None = None,
    transfer: Transfer | None = None,
    with_plots: bool = True,
) -> tuple[VariantAnalysis, ...]:
    """Analyse every run, one table a variant. `only` limits it to one stage; its teacher is trained and asked, too.

    One process at a time works on a recipe's run folder: a second one says so and waits.
    """
    if transfer is not None:
        for plan in plans:
            transfer.require_fit(plan)
    folder = settings.runs / plans[0].name
    variants: dict[str, tuple[str, dict[Path, dict[str, Any]]]] = {}
    with locked(folder / ".lock", f"recipe {plans[0].name} ({folder})", notify):
        remove_leftovers(folder)
        for plan in plans:
            run = Stages(plan, settings, notify)
            run.train(only)
            names = [only] if only else list(run.artifacts)
            document = analyse_run(run, names, plotted=names if with_plots else (), transfer=transfer)
            document = {**document, "stages": {name: document["stages"][name] for name in names}}
            if with_plots:
                _write_plots(run.folder / PLOT_FOLDER, document)
            key = json.dumps(plan.variant.settings, default=str)
            variants.setdefault(key, (variant_name(plan), {}))[1][run.folder / FILE] = document
    return tuple(_over_seeds(name, documents) for name, documents in variants.values())


def _over_seeds(variant: str, documents: dict[Path, dict[str, Any]]) -> VariantAnalysis:
    stages = tuple(next(iter(documents.values()))["stages"])
    records: dict[str, list[Record]] = {
        stage: [document["stages"][stage] for document in documents.values()] for stage in stages
    }
    return VariantAnalysis(variant, stages, lines(records), documents)


def _write_plots(folder: Path, document: dict[str, Any]) -> None:
    """Write every stage's plots as `<stage>.<plot>.svg`."""
    for name, record in document["stages"].items():
        one = {name: record}
        drawn = {
            "reliability": plots.reliability_diagrams(one),
            "logits": plots.logit_histograms(name, record),
            "tsne-classes": plots.embedding_plot(one, "classes", document["class_names"]),
            "tsne-hidden": plots.embedding_plot(one, "hidden", document["hidden_names"] or ()),
            "plane": plots.plane_plot(one),
        }
        for plot, svg in drawn.items():
            if svg:
                write_atomically(folder / f"{name}.{plot}.svg", svg)
