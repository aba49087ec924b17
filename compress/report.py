"""report.html (one file, works offline) and report.json, from what the runs left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from compress import figures
from compress.analysis.outputs import OutputsOfRun
from compress.analysis.page import analysis_section
from compress.artifact import versions
from compress.choice import (
    Candidate,
    by_target,
    candidates_from,
    energy_counter,
    limits_in_words,
    sentences,
    shared_limits,
)
from compress.choice_plot import choice_plot
from compress.gallery import Gallery, build_gallery
from compress.parity_page import parity_sections
from compress.provenance import without_places, yaml_text
from compress.summary import Row, device_notes, layers_by_damage, summary_sentence
from compress.units import count, millijoules, milliseconds, size
from compress.variant_run import VariantRun
from runtime.files import write_atomically, write_json
from runtime.latency import decode_samples
from runtime.machine_text import machine_facts


@dataclass(frozen=True)
class Plot:
    """One figure of the page: heading, SVG, and the sentence below it. tall: panels below each other."""

    title: str
    svg: str
    caption: str
    tall: bool = False


def write_report(runs: Sequence[VariantRun], rows: Sequence[Row], folder: Path) -> Path:
    """Write report.html and report.json into `folder`. Plots and gallery show the first run; the table shows all."""
    first = runs[0]
    outputs = OutputsOfRun(first)
    bench = next(iter(_benches(first).values()), None)
    document = {
        "format_version": 1,
        "recipe": first.plan.name,
        "data": first.plan.fingerprint,
        "versions": versions(),
        "machine": bench["environment"] if bench else None,
        "scale": first.plan.variant.scale,
        "rows": [row.to_json() for row in rows],
    }
    write_json(folder / "report.json", document)
    environment = Environment(
        loader=PackageLoader("compress", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, percent=_percent, size=size, time=milliseconds, energy=millijoules)
    environment.filters.update(deviations=_deviations, by_damage=layers_by_damage)
    page = environment.get_template("report.html.jinja").render(
        recipe=first.plan.recipe,
        name=first.plan.name,
        scale=first.plan.variant.scale,
        sentence=summary_sentence(rows, first.plan.recipe.exported_stage),
        advice=sentences(candidates) if (candidates := _of_devices(first, rows)) else [],
        rows=rows,
        devices=any(row.elsewhere for row in rows),
        missed=device_notes(rows),
        several_seeds=len(first.plan.recipe.all_seeds) > 1,
        run_name=first.plan.variant.folder,
        plots=_plots(first, rows),
        parities=parity_sections(first),
        galleries=[(gallery, _agreement_plot(gallery)) for gallery in _galleries(first, outputs)],
        analysis=analysis_section(first, tuple(first.artifacts), outputs),
        provenance=_provenance(first),
        machine=_machine(bench) if bench else [],
        description=without_places(first.plan.recipe.description),
        recipe_text=_recipe_text(first),
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def _of_devices(run: VariantRun, rows: Sequence[Row]) -> list[Candidate]:
    """Return what was measured, on this machine too; nothing where no device of targets.yaml was asked."""
    asked = any(row.elsewhere for row in rows)
    return candidates_from(run.plan.name, [row.to_json() for row in rows]) if asked else []


def _device_plots(candidates: Sequence[Candidate]) -> list[Plot]:
    plots = []
    for target, here in by_target(candidates).items():
        measures = ["latency", "size", *(["energy"] if energy_counter(here) else [])]
        caption = "Bars: 95 % Wilson interval of the accuracy, and from p50 to p90 of the latency. Line: what no other "
        caption += f"beats in this cost. Pale: beaten in accuracy, {' and '.join(measures)} together. Hollow: failed "
        caption += "parity or a limit."
        if limits := limits_in_words(shared_limits(here)):
            caption += f" Dashed: the limits of {target} ({limits})."
        plots.append(
            Plot(f"Accuracy against {' and '.join(measures)} on {target}", choice_plot(here), caption, tall=True)
        )
    return plots


def _plots(run: VariantRun, rows: Sequence[Row]) -> list[Plot]:
    plots = _device_plots(_of_devices(run, rows))
    measured = [row for row in rows if row.p50_ms is not None]
    if measured and not plots:
        caption = "Bars: 95 % Wilson interval of the accuracy, and from p50 to p90 of the latency."
        plots.append(Plot("Accuracy against latency", figures.accuracy_against_latency(measured), caption))
    samples = {name: decode_samples(bench["samples"]) / 1e6 for name, bench in _benches(run).items()}
    if samples:
        caption = "Every timed call, none left out; the long tail is the machine's as much as the model's."
        plots.append(Plot("Latency", figures.latency_histogram(samples), caption))
    logs = {name: artifact.log() for name, artifact in run.artifacts.items()}
    caption = "Each stage's own objective: losses of different terms are not comparable."
    plots.append(Plot("Training", figures.loss_curves(logs), caption))
    if validation := figures.validation_curves(logs):
        plots.append(
            Plot("Validation", validation, "Rows held out of the training data; the test rows are not looked at.")
        )
    if curves := figures.test_curves(logs):
        caption = "Noted after each epoch because the recipe asks for it (test_curve); nothing is chosen by it."
        plots.append(Plot("Test accuracy by epoch", curves, caption))
    if flips := figures.flip_curves(logs):
        caption = "Latent weights whose sign is another at an epoch's end than at its beginning; settled ones stay."
        plots.append(Plot("Signs that turned over", flips, caption))
    if dead := figures.dead_channel_curves(logs):
        caption = "Channels whose sign is the same at every position of 256 training rows, and so tells nothing."
        plots.append(Plot("Dead channels", dead, caption))
    plots += [plot for name in _formats(run) if (plot := _confusion_plot(run, name))]
    return plots


def _formats(run: VariantRun) -> list[str]:
    bundle = run.bundle()
    return list(bundle.formats) if bundle else []


def _benches(run: VariantRun) -> dict[str, dict[str, Any]]:
    """Return every latency result of the run by "format" or, with several targets, "format on target"."""
    found = {(name, target): bench for name in _formats(run) for target, bench in run.benches(name).items()}
    several = len({target for _, target in found}) > 1
    return {f"{name} on {target}" if several else name: bench for (name, target), bench in found.items()}


def _confusion_plot(run: VariantRun, format_name: str) -> Plot | None:
    accuracy = run.result(f"accuracy.{format_name}.json")
    if accuracy is None:
        return None
    svg = figures.confusion_matrix(np.array(accuracy["confusion"]), run.dataset.class_names)
    unlike = _unlike(accuracy["rows_unlike_torch"])
    caption = f"{accuracy['total']:,} test rows through the exported {format_name} file; {unlike}."
    return Plot(f"Confusion, {format_name}", svg, caption)


def _unlike(rows: Sequence[int]) -> str:
    return f"{len(rows)} predictions differ from torch's" if rows else "every prediction equals torch's"


def _galleries(run: VariantRun, outputs: OutputsOfRun) -> list[Gallery]:
    """Return a gallery for the deployed stage and its teacher, where they have subclasses."""
    deployed = run.plan.stage(run.plan.recipe.exported_stage)
    names = [name for name in (deployed.name, *deployed.teachers) if run.plan.stage(name).heads.subclasses > 1]
    test = run.dataset.test
    images = None if run.dataset.signature.ids is not None else test.inputs
    if isinstance(images, np.ndarray) and run.dataset.signature.layout == "NCHW":
        images = images.transpose(0, 2, 3, 1)
    if images is None and test.texts is None:
        return []  # ids show nothing
    return [
        build_gallery(
            name,
            outputs(name).logits,
            images,
            texts=test.texts,
            class_names=run.dataset.class_names,
            hidden=test.hidden,
            hidden_names=run.dataset.hidden_names,
        )
        for name in names
        if name in run.artifacts
    ]


def _agreement_plot(gallery: Gallery) -> str:
    if gallery.counts is None:
        return ""
    return figures.subclass_agreement(
        gallery.counts, [subclass.name for subclass in gallery.subclasses], gallery.hidden_names
    )


def _provenance(run: VariantRun) -> list[tuple[str, str]]:
    found = [(f"stage {name}", artifact.key) for name, artifact in run.artifacts.items()]
    found += [("data content", run.plan.fingerprint), ("export", run.plan.key)]
    rows = {"train": run.dataset.train, "validation": run.dataset.validation, "test": run.dataset.test}
    found.append(("rows", ", ".join(f"{name} {len(split):,}" for name, split in rows.items())))
    return [*found, *versions().items()]


def _machine(bench: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is recorded of the machine, its state before and after, and its energy where it has a counter."""
    facts = machine_facts(bench)
    del facts["machine"]  # what is recorded says it in full
    return [*_flatten(bench["environment"]), *facts.items(), *(("note", note) for note in bench["notes"])]


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(inner, dict):
            pairs += _flatten(inner, f"{name} · ")
        elif inner is not None:
            pairs.append((name, ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner)))
    return pairs


def _recipe_text(run: VariantRun) -> str:
    """Return the whole recipe, seeds and sweep too, without the place of its data."""
    value = run.plan.recipe.model_dump(mode="json", exclude_none=True)
    value["data"].pop("root", None)
    return yaml_text(value)


def _deviations(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"
