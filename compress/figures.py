"""The report's plots, as SVG to be set into the page. No pyplot: it keeps global state and may look for a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress.summary import Row

# Okabe & Ito 2008: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}
# A longer class name (of joined classes) would leave no room for the plot itself.
TICK_LENGTH = 16
# All of matplotlib's own fields: without them there is no metadata element and no web address in it.
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def svg_of(name: str, draw: Callable[[Figure], None], width: float = 6.2, height: float = 3.6) -> str:
    """Return the SVG element that `draw` makes; `name` keeps its ids apart from other figures' on the page."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


Records = Sequence[Mapping[str, Any]]


def loss_curves(stages: Mapping[str, Records]) -> str:
    """Total training loss by epoch, one line a stage."""
    losses = {name: [record["losses"]["total"] for record in records] for name, records in stages.items()}
    # subclass_auxiliary may be negative, and a logarithmic axis would drop those epochs without a word.
    scale = "log" if min(map(min, losses.values())) > 0 else "linear"
    return _curves("loss", losses, ylabel="training loss", yscale=scale)


def validation_curves(stages: Mapping[str, Records]) -> str:
    """Validation error in percent by epoch, one line a stage that has validation rows; "" where none has."""
    errors = {
        name: [100 * (1 - record["validation_accuracy"]) for record in records]
        for name, records in stages.items()
        if records[0]["validation_accuracy"] is not None
    }
    return _curves("validation", errors, ylabel="validation error, %", yscale="linear") if errors else ""


def test_curves(stages: Mapping[str, Records]) -> str:
    """Test accuracy in percent by epoch, one line a stage that noted it (`train.test_curve`); "" where none did."""
    accuracies = {
        name: [100 * record["test_accuracy"] for record in records]
        for name, records in stages.items()
        if records[0]["test_accuracy"] is not None
    }
    return _curves("test-curve", accuracies, ylabel="test accuracy, %", yscale="linear") if accuracies else ""


def flip_curves(stages: Mapping[str, Records]) -> str:
    """Share of the binary weights whose sign turned over in an epoch, one line a stage that has any; "" without."""
    flips = _of_binary_layers(stages, lambda binary: 100 * binary["flipped"], "flipped")
    return _curves("flips", flips, ylabel="signs turned over, %", yscale="linear") if flips else ""


def dead_channel_curves(stages: Mapping[str, Records]) -> str:
    """Share of the channels before a sign that have one sign only, one line a stage that has any; "" without."""
    dead = _of_binary_layers(stages, lambda binary: 100 * binary["dead_channels"] / binary["channels"], "channels")
    return _curves("dead-channels", dead, ylabel="dead channels, %", yscale="linear") if dead else ""


def _of_binary_layers(
    stages: Mapping[str, Records], value: Callable[[Mapping[str, float]], float], needs: str
) -> dict[str, list[float]]:
    return {
        name: [value(record["binary"]) for record in records]
        for name, records in stages.items()
        if needs in records[0].get("binary", {})
    }


def _curves(figure_name: str, lines: Mapping[str, Sequence[float]], *, ylabel: str, yscale: str) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, (name, values) in zip(cycle(len(lines)), lines.items(), strict=True):
            axes.plot(
                range(1, len(values) + 1), values, color=colour, label=name, marker="." if len(values) == 1 else ""
            )
        axes.set(xlabel="epoch", ylabel=ylabel, yscale=yscale)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    return svg_of(figure_name, draw)


def latency_histogram(latencies_ms: Mapping[str, np.ndarray]) -> str:
    """Every call on a logarithmic time axis, with p50 and p90; nothing is trimmed."""
    unit, factor = time_unit(min(float(values.min()) for values in latencies_ms.values()))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        low = factor * min(float(values.min()) for values in latencies_ms.values())
        high = factor * max(float(values.max()) for values in latencies_ms.values())
        bins = np.geomspace(low, max(high, low * 1.01), 120).tolist()
        for colour, (name, values) in zip(cycle(len(latencies_ms)), latencies_ms.items(), strict=True):
            p50, p90 = (factor * float(np.percentile(values, percent)) for percent in (50, 90))
            label = f"{name}: p50 {p50:.3g} {unit}, p90 {p90:.3g} {unit}, {len(values):,} calls"
            axes.hist(values * factor, bins=bins, color=colour, alpha=0.75, label=label)
            axes.axvline(p50, color=colour, linewidth=1.2)
            axes.axvline(p90, color=colour, linewidth=1.2, linestyle="--")
        axes.set(xscale="log", yscale="log", ylabel="calls", xlabel=f"latency of one call, {unit}")
        axes.set_ylim(0.7, 10 * axes.get_ylim()[1])  # from one call up, with room for the legend
        axes.legend(loc="upper right")

    return svg_of("latency", draw)


def accuracy_against_latency(rows: Sequence[Row]) -> str:
    """Each export: test accuracy with its 95 % interval, median latency with a bar to p90."""
    unit, factor = time_unit(min(row.p50_ms or 0.0 for row in rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, row in zip(cycle(len(rows)), rows, strict=True):
            assert row.p50_ms is not None  # the caller picks measured rows
            x, y = factor * row.p50_ms, 100 * row.mean
            below, above = max(0.0, y - 100 * row.low), max(0.0, 100 * row.high - y)
            right = 0.0 if row.p90_ms is None else max(0.0, factor * row.p90_ms - x)
            axes.errorbar(
                x,
                y,
                yerr=np.array([[below], [above]]),
                xerr=np.array([[0.0], [right]]),
                fmt="o",
                color=colour,
                capsize=3,
            )
            label = f"{row.name}{', ' + row.variant if row.variant else ''}\n{row.size_bytes / 1000:,.1f} kB"
            axes.annotate(
                label, (x, y), xytext=(8, 6), textcoords="offset points", fontsize=9, color=colour, parse_math=False
            )
        axes.set(xlabel=f"latency of one call, {unit} (dot: p50, bar: to p90)", ylabel="test accuracy, %")
        # From zero: a device's budget is an amount, and two files a hair apart should look so.
        axes.set_xlim(0, 1.35 * factor * max(row.p90_ms or row.p50_ms or 0.0 for row in rows))
        axes.margins(y=0.25)

    return svg_of("tradeoff", draw)


def short(name: str) -> str:
    """Return a name that fits beside a plot; the number of a subclass ("cat · 1") stays."""
    name, dot, number = name.partition(" · ")
    return (name if len(name) <= TICK_LENGTH else name[: TICK_LENGTH - 1] + "…") + dot + number


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """Counts by true (row) and predicted (column) class; shades are shares of the row."""
    classes, names = len(names), [short(name) for name in names]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
        if classes <= 20:
            axes.set_xticks(range(classes), names, rotation=45 if max(map(len, names)) > 3 else 0, parse_math=False)
            axes.set_yticks(range(classes), names, parse_math=False)
            for (i, j), count in np.ndenumerate(counts):
                axes.text(
                    j,
                    i,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    color="white" if shares[i, j] > 0.55 else "#333333",
                    fontsize=9,
                )

    side = min(7.0, 2.6 + 0.42 * classes)
    return svg_of("confusion", draw, width=side, height=side)


def subclass_agreement(counts: np.ndarray, subclass_names: Sequence[str], hidden_names: Sequence[str]) -> str:
    """Share of each hidden label (row) that lands in each invented subclass (column)."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        axes.grid(visible=False)
        axes.set(xlabel="invented subclass", ylabel="hidden label")
        axes.set_xticks(range(len(subclass_names)), list(map(short, subclass_names)), rotation=45, parse_math=False)
        axes.set_yticks(range(len(hidden_names)), list(map(short, hidden_names)), parse_math=False)
        if counts.size <= 400:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.005:
                    axes.text(
                        j,
                        i,
                        f"{100 * share:.0f}",
                        ha="center",
                        va="center",
                        color="white" if share > 0.55 else "#333333",
                        fontsize=8,
                    )

    return svg_of(
        "agreement",
        draw,
        width=min(9.0, 2.4 + 0.5 * len(subclass_names)),
        height=min(8.0, 1.6 + 0.34 * len(hidden_names)),
    )


def cycle(count: int) -> list[str]:
    """Return a colour for each of `count` things."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def time_unit(smallest_ms: float) -> tuple[str, float]:
    """Return the unit in which times from `smallest_ms` up read well, and its factor."""
    return ("µs", 1000.0) if smallest_ms < 1 else ("ms", 1.0)
