"""The analysis plots as SVG: reliability diagrams, logit histograms, embeddings in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from compress.analysis.calibration import BINS
from compress.figures import COLOURS, svg_of

Record = Mapping[str, Any]

NAMED = 20  # groups that a plot of points still names one by one
LISTED = 3  # groups that are named below a plot and not in it
INK, FRAME = "#333333", "#dddddd"


def reliability_diagrams(records: Mapping[str, Record]) -> str:
    """Accuracy by confidence, a panel a stage, beside the diagonal of a calibrated model; below, the share of rows."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2, len(records), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
        for (upper, lower), colour, (name, record) in zip(
            panels.T, _palette(len(records)), records.items(), strict=True
        ):
            _reliability(upper, lower, name, record, colour)
        panels[0, 0].set_ylabel("accuracy")
        panels[1, 0].set_ylabel("rows, %")

    return svg_of("reliability", draw)


def _reliability(upper: Axes, lower: Axes, name: str, record: Record, colour: str) -> None:
    bins = {key: np.array(values) for key, values in record["reliability"].items()}
    used = bins["counts"] > 0
    centres = (np.arange(BINS) + 0.5) / BINS
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
    upper.bar(centres[used], bins["accuracy"][used], width=0.9 / BINS, color=colour, alpha=0.75)
    upper.set_axisbelow(True)
    error = 100 * record["test"]["values"]["expected_calibration_error"]
    upper.set_title(f"{name}: ECE {error:.2f} %", fontsize=10, parse_math=False)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.set_axisbelow(True)
    lower.bar(centres, 100 * bins["counts"] / bins["counts"].sum(), width=0.9 / BINS, color=colour)
    lower.set(xlabel="confidence", ylim=(0, 100))


def logit_histograms(name: str, record: Record) -> str:
    """Sum of each row's logits, of a stage and its teacher; and how far apart their logits are."""
    logits = record["logits"]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 1 if logits["distance"] is None else 2, squeeze=False)[0]
        names = {"student": name, "teacher": str(record["teacher"])}
        _histogram(panels[0], logits["sum"], names)
        panels[0].set(xlabel="sum of logits", ylabel="rows")
        panels[0].legend()
        if logits["distance"] is not None:
            _histogram(panels[1], logits["distance"], names)
            panels[1].set(xlabel="distance to the teacher's logits, L2")

    return svg_of("logits", draw)


def _histogram(axes: Axes, histogram: Mapping[str, Any], names: Mapping[str, str]) -> None:
    axes.set_axisbelow(True)
    for colour, (role, counts) in zip(COLOURS, histogram["counts"].items(), strict=False):
        axes.stairs(counts, histogram["edges"], fill=True, alpha=0.6, color=colour, label=names[role])
        axes.axvline(histogram["means"][role], color=colour, linewidth=1.2)


def embedding_plot(records: Mapping[str, Record], colour_by: str, names: Sequence[str]) -> str:
    """t-SNE of the same test rows, a panel a stage, coloured by "classes" or "hidden" labels; "" without any."""
    panels = {
        stage: (tsne["points"], tsne[colour_by], names)
        for stage, record in records.items()
        if (tsne := record["projections"]["tsne"])["points"] is not None and tsne[colour_by] is not None
    }
    return _scatter_panels(f"tsne-{colour_by}", panels, with_units=False)


def plane_plot(records: Mapping[str, Record]) -> str:
    """The plane through class or subclass templates, a panel a stage; "" where no stage has one."""
    panels = {
        stage: (plane["points"], plane["of_row"], plane["corners"])
        for stage, record in records.items()
        if (plane := record["projections"]["plane"])["points"] is not None
    }
    return _scatter_panels("plane", panels, with_units=True)


Panel = tuple[Sequence[Sequence[float]], Sequence[int], Sequence[str]]


def _scatter_panels(figure_name: str, panels: Mapping[str, Panel], *, with_units: bool) -> str:
    def draw(figure: Figure) -> None:
        for axes, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            _scatter(axes, *panel)
            axes.set_title(title, fontsize=10, parse_math=False)
            axes.spines[:].set(visible=True, color=FRAME)
            axes.set_axisbelow(True)
            if with_units:
                axes.set_aspect("equal", adjustable="datalim")
            else:
                axes.set(xticks=[], yticks=[])

    listed = max((len(names) for _, _, names in panels.values() if len(names) <= LISTED), default=0)
    return svg_of(figure_name, draw, height=3.3 + 0.2 * listed) if panels else ""


def _scatter(axes: Axes, points: Sequence[Sequence[float]], groups: Sequence[int], names: Sequence[str]) -> None:
    xy, group = np.array(points), np.array(groups)
    palette = _palette(len(names))
    # As pixels: a mark a row would be most of the page.
    axes.scatter(xy[:, 0], xy[:, 1], c=[palette[i] for i in group], s=9, alpha=0.7, linewidths=0, rasterized=True)
    for index in np.unique(group) if len(names) <= NAMED else ():
        # Few groups may lie in several places, so their names stand below; many are found by a name among their points.
        below = len(names) <= LISTED
        where = (0.5, -0.14 - 0.08 * index) if below else np.median(xy[group == index], axis=0)
        axes.text(
            where[0],
            where[1],
            names[index],
            color=palette[index],
            transform=axes.transAxes if below else axes.transData,
            fontsize=9,
            weight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
            parse_math=False,
        )


def _palette(count: int) -> list[str]:
    """Return a colour for each of `count` groups; beyond those that can be told apart, along a wheel."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    if count <= NAMED:
        return [to_hex(colormaps["tab10" if count <= 10 else "tab20"](index)) for index in range(count)]
    return [to_hex(colormaps["hsv"](index / count)) for index in range(count)]
