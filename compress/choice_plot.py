"""Which student to ship, as a picture: accuracy against what it costs, on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from compress.choice import Candidate, by_target, energy_counter, front, shared_limits, student_names
from compress.figures import cycle, svg_of, time_unit

# Of the legend, in inches and letters.
_LETTER, _MARK = 0.085, 7
# A limit that is further off than this many times the largest value would leave the marks no room, and is only named.
_FAR = 3.0


@dataclass(frozen=True)
class _Measure:
    """What an axis shows. values: a number for each file, None where the device does not count it for all of them.

    unit: its name and factor, by the smallest value. limits: the names of its limits. tail: of p90 beyond the value.
    """

    title: str
    values: Callable[[Sequence[Candidate]], list[float] | None]
    unit: Callable[[float], tuple[str, float]]
    limits: tuple[str, ...] = ()
    tail: Callable[[Candidate], float] = lambda _: 0.0


def _energies(candidates: Sequence[Candidate]) -> list[float] | None:
    counter = energy_counter(candidates)
    return [each.energy_mj[counter] for each in candidates] if counter else None


_LATENCY = _Measure(
    "latency (mark: p50, bar: to p90)",
    lambda candidates: [each.p50_ms for each in candidates],
    time_unit,
    ("p50_ms", "p90_ms", "p99_ms"),
    lambda each: max(0.0, (each.p90_ms or each.p50_ms) - each.p50_ms),
)
_SIZE = _Measure(
    "size", lambda candidates: [each.size_bytes / 1e3 for each in candidates], lambda _: ("kB", 1.0), ("size_kb",)
)
_ENERGY = _Measure("energy of a call", _energies, lambda least: ("µJ", 1000.0) if least < 1 else ("mJ", 1.0))


def choice_plot(candidates: Sequence[Candidate]) -> str:
    """Accuracy against latency, size and, where the devices count it, energy: a column of panels a device.

    A colour a student, a mark a format, a line through the front of each panel's measure alone; what is not on the
    device's whole front is pale. Limits are dashed: of a cost across the panel, of accuracy, which hangs on the
    student, in its colour.
    """
    devices = by_target(candidates)
    measures = [_LATENCY, _SIZE, *([_ENERGY] if any(map(energy_counter, devices.values())) else [])]
    formats = list(dict.fromkeys(each.format for each in candidates))
    names = student_names(candidates)
    colours = dict(zip(names, cycle(len(names)), strict=True))
    marks = {form: "osD^vPX*"[i % 8] for i, form in enumerate(formats)}

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(measures), len(devices), sharey=True, squeeze=False)
        for column, (target, here) in zip(grid.T, devices.items(), strict=True):
            for axes, measure in zip(column, measures, strict=True):
                _draw_choice(axes, here, measure, colours, marks)
            column[0].set_title(target)
        for row in grid:
            row[0].set_ylabel("test accuracy, %")
        named = [Line2D([], [], color=colours[each], lw=3, label=names[each]) for each in names]
        named += [Line2D([], [], color="#555555", marker=marks[form], ls="", label=form) for form in formats]
        widest = max(len(str(each.get_label())) for each in named)
        columns = max(1, int(width / (_LETTER * (widest + _MARK))))
        figure.legend(handles=named, loc="outside lower center", ncols=min(len(named), columns))

    width = max(6.2, 3.4 * len(devices))
    return svg_of(f"choice {' '.join(devices)}", draw, width=width, height=0.6 + 2.9 * len(measures))


def _draw_choice(
    axes: Axes,
    candidates: Sequence[Candidate],
    measure: _Measure,
    colours: Mapping[tuple[str, str, str], str],
    marks: Mapping[str, str],
) -> None:
    values = measure.values(candidates)
    if values is None:
        axes.set(xlabel="energy was not counted")
        return
    unit, factor = measure.unit(min(values))
    best = front(candidates)
    for each, value in zip(candidates, values, strict=True):
        axes.errorbar(
            [factor * value],
            [100 * each.accuracy],
            yerr=[[100 * (each.accuracy - each.low)], [100 * (each.high - each.accuracy)]],
            xerr=[[0.0], [factor * measure.tail(each)]],
            fmt=marks[each.format],
            color=colours[each.student],
            fillstyle="full" if each.sound else "none",
            alpha=1.0 if each in best else 0.45,
            elinewidth=0.8,
        )
    steps = front_line(candidates, values)
    axes.plot([factor * x for x, _ in steps], [100 * y for _, y in steps], color="#888888", lw=1, zorder=0)
    _draw_limits(axes, candidates, measure, (unit, factor), colours)
    counter = energy_counter(candidates) if measure is _ENERGY else None
    axes.set(xscale="log", xlabel=f"{measure.title}, {unit}" + (f"\n{counter}" if counter else ""))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    narrow = max(values) < 10 * min(values)  # there may be no power of ten in it
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 8) if narrow else (1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def front_line(candidates: Sequence[Candidate], values: Sequence[float]) -> list[tuple[float, float]]:
    """Return cost and accuracy of those sound ones than which none is as cheap and more accurate, cheapest first."""
    steps: list[tuple[float, float]] = []
    sound = [(value, each.accuracy) for each, value in zip(candidates, values, strict=True) if each.sound]
    for value, accuracy in sorted(sound, key=lambda pair: (pair[0], -pair[1])):
        if not steps or accuracy > steps[-1][1]:
            steps.append((value, accuracy))
    return steps


def _draw_limits(
    axes: Axes,
    candidates: Sequence[Candidate],
    measure: _Measure,
    unit: tuple[str, float],
    colours: Mapping[tuple[str, str, str], str],
) -> None:
    limits = {name: allowed for name, allowed in shared_limits(candidates).items() if name in measure.limits}
    name_of_unit, factor = unit
    far = _FAR * max(measure.values(candidates) or [0.0])
    beyond = {name: allowed for name, allowed in limits.items() if allowed > far}
    style: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 9, "color": "#B3370B"}
    for name, allowed in limits.items():
        if name not in beyond:
            axes.axvline(factor * allowed, color="#B3370B", linestyle="--", linewidth=1)
            place = axes.get_xaxis_transform()
            axes.text(factor * allowed, 0.99, f" {name.partition('_')[0]} ", transform=place, **style)
    said = [f"{name.partition('_')[0]} ≤ {factor * allowed:g} {name_of_unit} →" for name, allowed in beyond.items()]
    axes.text(0.99, 0.99, "\n".join(said), transform=axes.transAxes, **style)
    for each in candidates:
        if each.accuracy_floor is not None:
            colour = colours[each.student]
            axes.axhline(100 * each.accuracy_floor, color=colour, linestyle="--", linewidth=0.8, alpha=0.6)
