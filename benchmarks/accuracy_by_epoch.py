"""Test accuracy against training epoch, mean over seeds, of stages whose recipe asks for `test_curve`.

    edgefold run lelp/mnist-2x5-lelp --data-root data
    edgefold run subclass-distillation/mnist-2x5 --data-root data
    python benchmarks/accuracy_by_epoch.py plain=mnist-2x5-lelp/plain KD=mnist-2x5-lelp/distilled \\
        SC-D=mnist-2x5/subclass LELP=mnist-2x5-lelp/lelp --plot docs/mnist-2x5-epochs.png --output FILE.json

A curve is LABEL=RECIPE/STAGE, of every seed of the recipe's run folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from compress.figures import COLOURS

Curve = list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", metavar="LABEL=RECIPE/STAGE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--plot", type=Path, help="image to write (PNG or SVG)")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    curves: dict[str, list[Curve]] = {}
    for given in options.curves:
        label, _, stage = given.partition("=")
        curves[label] = seeds_of(options.runs, stage)
    table(curves)
    if options.plot:
        draw(curves).savefig(options.plot, dpi=110)
    if options.output:
        record = {"command": " ".join(sys.argv), "test_accuracy_percent": curves}
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def seeds_of(runs: Path, stage: str) -> list[Curve]:
    """Return the curve of each seed, test accuracy in percent after each epoch."""
    recipe, _, name = stage.partition("/")
    found = []
    for run in sorted((runs / recipe).rglob("run.json")):
        key = json.loads(run.read_text())["stages"].get(name)
        if key is None:
            continue
        records = [json.loads(line) for line in (runs / "stages" / key / "log.jsonl").read_text().splitlines()]
        if records[0]["test_accuracy"] is None:
            sys.exit(f"{stage}: its log has no test accuracy; set `train: {{test_curve: true}}` in the recipe")
        found.append([100 * record["test_accuracy"] for record in records])
    if not found:
        sys.exit(f"{stage}: no run below {runs / recipe} has this stage; run the recipe first")
    return found


def table(curves: dict[str, list[Curve]]) -> None:
    epochs = max(len(curve) for seeds in curves.values() for curve in seeds)
    print("epoch     " + "".join(f"{epoch:>8}" for epoch in range(1, epochs + 1)))
    for label, seeds in curves.items():
        means = [statistics.fmean(values) for values in zip(*seeds, strict=True)]
        print(f"{label:<10}" + "".join(f"{mean:>8.2f}" for mean in means) + f"   ({len(seeds)} seeds)")


def draw(curves: dict[str, list[Curve]]) -> Figure:
    """Draw the mean of each label with a band from the lowest to the highest seed."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, (label, seeds) in zip(COLOURS, curves.items(), strict=False):
        by_epoch = list(zip(*seeds, strict=True))
        epochs = range(1, len(by_epoch) + 1)
        axes.plot(epochs, [statistics.fmean(values) for values in by_epoch], color=colour, label=label, marker=".")
        if len(seeds) > 1:
            axes.fill_between(epochs, list(map(min, by_epoch)), list(map(max, by_epoch)), color=colour, alpha=0.15)
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    sys.exit(main())
