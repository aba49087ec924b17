"""The analysis section of the report: every stage's measures, and the plots of the deployed stage and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.analysis import plots
from compress.analysis.outputs import OutputsOfRun
from compress.analysis.record import Record, analyse_run
from compress.analysis.table import BITS_NOTE, Line, lines
from compress.stages import Stages


@dataclass(frozen=True)
class AnalysisPlot:
    """One figure of the section: heading, SVG, and the sentence below it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """What the page shows: a column a stage, a line a measure. `notes` say what a table of numbers cannot."""

    stages: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    plots: tuple[AnalysisPlot, ...]


def analysis_section(run: Stages, finished: tuple[str, ...], outputs: OutputsOfRun) -> Section:
    """Analyse the finished stages of a run, or read what was found before, and describe it for the page."""
    shown = tuple(name for name in shown_stages(run) if name in finished)
    document = analyse_run(run, finished, plotted=shown, outputs=outputs)
    records: dict[str, Record] = {name: document["stages"][name] for name in finished}
    table = lines({name: [record] for name, record in records.items()})
    names = tuple(document["class_names"]), tuple(document["hidden_names"] or ())
    return Section(finished, table, _notes(table), tuple(_plots({name: records[name] for name in shown}, *names)))


def shown_stages(run: Stages) -> tuple[str, ...]:
    """Return the deployed stage and its teacher, whose plots are made."""
    deployed = run.plan.stage(run.plan.recipe.exported_stage)
    return (deployed.name, *deployed.teachers)


def _notes(table: tuple[Line, ...]) -> tuple[str, ...]:
    return (BITS_NOTE,) if any(line.metric.name == "effective_label_bits" for line in table) else ()


def _plots(
    records: Mapping[str, Record], class_names: tuple[str, ...], hidden_names: tuple[str, ...]
) -> list[AnalysisPlot]:
    if not records:
        return []
    deployed, record = next(iter(records.items()))
    points = max(len(record["projections"]["tsne"]["points"] or ()) for record in records.values())
    tsne = f"t-SNE of the same {points:,} test rows; only who lies beside whom has a meaning"
    found = [
        AnalysisPlot("Reliability", plots.reliability_diagrams(records), _RELIABILITY),
        AnalysisPlot("Logits", plots.logit_histograms(deployed, record), _logits_caption(record)),
        AnalysisPlot(
            "Embeddings by class", plots.embedding_plot(records, "classes", class_names), f"{tsne}; coloured by class."
        ),
        AnalysisPlot(
            "Embeddings by hidden label",
            plots.embedding_plot(records, "hidden", hidden_names),
            f"{tsne}; coloured by the label that training never saw.",
        ),
        AnalysisPlot("Plane through templates", plots.plane_plot(records), _PLANE),
    ]
    return [plot for plot in found if plot.svg]


_RELIABILITY = (
    "Accuracy of the rows in each of 15 bins of confidence (Guo et al. 2017); on the dashed line a model is right as "
    "often as it says. Below, where the rows are."
)
_PLANE = (
    "Embeddings on the plane through the classifier's rows for three classes, or for the three subclasses that are "
    "largest most often (Müller, Kornblith & Hinton 2019); of two, with the first principal direction beside them."
)


def _logits_caption(record: Record) -> str:
    if record["logits"]["distance"] is None:
        return "Sum of each test row's logits; lines are means."
    which = {"all": "All logits", "class": "Class logits, because the heads differ,"}[record["logits"]["logits"]]
    return (
        f"{which} of each test row: equal sums say that the student follows the teacher's logits themselves, not only "
        "their differences (Kim et al. 2021). Lines are means."
    )
