"""The measures as a table of stages: what each is called, how it is written, where it comes from; mean over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _number(value: float) -> str:
    return f"{value:.3f}"


@dataclass(frozen=True)
class Metric:
    """One measure: its name in analysis.json, what the table calls it, and the paper or the setting behind it."""

    name: str
    label: str
    unit: str
    source: str
    write: Callable[[float], str] = _number


# In the order of the table, by what is measured.
METRICS: dict[str, tuple[Metric, ...]] = {
    "Predictions": (
        Metric("accuracy", "accuracy", "%", "", _percent),
        Metric("cross_entropy", "cross-entropy", "nats", ""),
        Metric("brier_score", "Brier score", "", "Brier 1950; 0 to 2"),
        Metric("expected_calibration_error", "expected calibration error", "%", "Guo et al. 2017; 15 bins", _percent),
        Metric("maximum_calibration_error", "maximum calibration error", "%", "Guo et al. 2017; 15 bins", _percent),
    ),
    "Beside the teacher": (
        Metric("teacher_agreement", "same class predicted", "%", "", _percent),
        Metric("teacher_kl", "KL(teacher ‖ student)", "nats", "class probabilities at τ = 1"),
        Metric("teacher_logit_distance", "distance of logits", "", "Kim et al. 2021; L2, mean of rows"),
        Metric("embedding_distance", "distance of embeddings", "", "Yang et al. 2021; L2, mean of rows"),
        Metric("normalised_embedding_distance", "distance of unit embeddings", "", "L2, mean of rows; 0 to 2"),
    ),
    "Clusters of the embeddings": (
        Metric("nmi_classes", "NMI with classes", "", "k-means, k = classes"),
        Metric("nmi_hidden", "NMI with hidden labels", "", "k-means, k = hidden labels"),
        Metric("nmi_teacher_classes", "NMI with the teacher's clusters", "", "k = classes"),
        Metric("nmi_teacher_hidden", "NMI with the teacher's clusters", "", "k = hidden labels"),
    ),
    "Subclasses": (
        Metric("permutation_accuracy", "accuracy, best permutation", "%", "Müller et al. 2020, 4.1.1", _percent),
        Metric("permutation_accuracy_within_class", "the same within classes", "%", "", _percent),
        Metric("effective_label_bits", "effective label bits", "bits", "Müller et al. 2020, formula mended"),
        Metric("utilisation_entropy", "utilisation entropy", "bits", "Müller et al. 2020, 4.1.1"),
        Metric("prediction_entropy", "prediction entropy", "bits", "Müller et al. 2020, 4.1.1"),
    ),
}  # fmt: skip
BITS_NOTE = (
    "Effective label bits: log2 S + P log2 P + (1 − P) log2((1 − P)/(S − 1)); the formula is printed with a slip, and "
    "this form gives the paper's own example, 0.94 bits at P = 0.73 and S = 5."
)


@dataclass(frozen=True)
class Figure:
    """A measure of one stage over seeds. Both are None where some seed has none; one seed has no deviation."""

    mean: float | None
    deviation: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, float | None]:
        return {"mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True)
class Line:
    """A metric and its figure for every stage, in the order of the table's columns."""

    group: str
    metric: Metric
    figures: tuple[Figure, ...]

    def cells(self) -> list[str]:
        """Return one text a stage: "96.66", "96.66 ± 0.12", or nothing."""
        return [_written(self.metric, figure) for figure in self.figures]


def _written(metric: Metric, figure: Figure) -> str:
    if figure.mean is None:
        return ""
    spread = "" if figure.deviation is None else f" ± {metric.write(figure.deviation)}"
    return metric.write(figure.mean) + spread


def lines(records: Mapping[str, Sequence[Record]]) -> tuple[Line, ...]:
    """Return the table of stages, each with its record of every seed. Lines on which no stage has a figure are out."""
    found = [
        Line(group, metric, tuple(_figure(seeds, metric.name) for seeds in records.values()))
        for group, metrics in METRICS.items()
        for metric in metrics
    ]
    found += _transfer_lines(records)
    return tuple(line for line in found if any(figure.mean is not None for figure in line.figures))


def _figure(seeds: Sequence[Record], name: str) -> Figure:
    measured = [record["test"] for record in seeds]
    reason = next((test["missing"][name] for test in measured if name in test["missing"]), "")
    return _over_seeds([test["values"][name] for test in measured], reason)


def _transfer_lines(records: Mapping[str, Sequence[Record]]) -> list[Line]:
    probes = {key: probe for seeds in records.values() for record in seeds for key, probe in record["transfer"].items()}
    found = []
    for key, probe in probes.items():
        note = f"accuracy on {probe['test_rows']:,} rows; fitted on {probe['train_rows']:,}"
        metric = Metric(key, f"linear probe, {probe['data']}", "%", note, _percent)
        figures = [
            _over_seeds([record["transfer"].get(key, {}).get("accuracy") for record in seeds], "not probed")
            for seeds in records.values()
        ]
        found.append(Line("Transfer", metric, tuple(figures)))
    return found


def _over_seeds(values: Sequence[float | None], reason: str) -> Figure:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return Figure(None, reason=reason)
    return Figure(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)
