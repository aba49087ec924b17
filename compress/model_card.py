"""MODEL_CARD.md, made from results: what the model is, how good, how sure, how it came to be. Short, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.card_parts import LICENCE, files_table, in_words, made_with, share, shortened, table, yaml_block
from compress.provenance import recipe_text, without_places
from compress.units import count, milliseconds, size

if TYPE_CHECKING:
    from compress.plan import StagePlan
    from compress.stages import Stages
    from compress.variant_run import VariantRun
    from export.bundle import OnnxForm

_ACCURACY = "test accuracy, 95 % interval"
_NOT_YET = "Parity and latency are measured after export and stand in the card beside the bundle's folder."


def export_card(stages: Stages, onnx: bytes, precision: str, forms: Sequence[OnnxForm]) -> str:
    """Return the card that travels in the bundle: all that is known when its files are written.

    precision: of `onnx`, the file of that format.
    """
    return _card(stages, ["## Files", files_table(onnx, precision, forms), _NOT_YET])


def run_card(run: VariantRun) -> str:
    """Return the card of a finished run: that of its bundle with parity, accuracy and latency of every format."""
    bundle = run.bundle()
    parity = (run.result("parity.json") or {}).get("formats", {})
    files, latencies = [], []
    for name, entry in bundle.formats.items() if bundle else ():
        accuracy = run.result(f"accuracy.{name}.json")
        files.append(
            (
                name,
                entry.precision,
                size(entry.size_bytes),
                share(accuracy["correct"], accuracy["total"]) if accuracy else "",
                *_parity_cells(parity.get(name)),
            )
        )
        latencies += [_latency(name, bench) for bench in run.benches(name).values()]
    columns = ("format", "precision", "size", _ACCURACY, "largest error / std", "same class", "parity")
    parts = ["## Files", table(columns, files), "Errors are of the logits beside PyTorch's, on test rows."]
    if latencies:
        columns = ("format", "device", "engine", "threads", "batch", "p50", "p90")
        parts += ["## Latency", table(columns, latencies)]
    return _card(run, parts, f"{bundle.checksum}" if bundle else "")


def _card(stages: Stages, middle: Sequence[str], checksum: str = "") -> str:
    plan = stages.plan
    stage = plan.stage(plan.recipe.exported_stage)
    test = stages.artifacts[stage.name].metrics["test"]
    recipe = plan.recipe
    classes = stages.dataset.class_names
    facts = [
        ("task", f"{len(classes)} classes: {shortened(classes)}"),
        ("input", f"{stage.signature}, {stage.signature.dtype} {stage.signature.layout}"),
        ("model", f"`{in_words(stage.spec.model)}`{_bits(stage)}"),
        ("size", f"{stage.parameters:,} parameters, {count(stage.profile.total_macs)} multiply-accumulates a row"),
        ("subclasses", f"{stage.heads.subclasses} for each class, folded inside the graph"),
        ("test accuracy", f"{share(test['correct'], test['total'])}, {test['total']:,} rows"),
        ("recipe key", f"`{plan.key}`"),
        *([("checksum of the bundle", f"`{checksum}`")] if checksum else []),
    ]
    scaled = [] if plan.variant.scale == 1 else [f"**Run in part**: {plan.variant.scale:g} of its epochs and rows."]
    parts = [
        f"# {plan.name}: {stage.name}",
        *([str(without_places(recipe.description))] if recipe.description else []),
        *scaled,
        table(("", ""), facts),
        *middle,
        "## Training",
        table(("stage", "model", "learns from", "objective", "epochs", _ACCURACY), _trained(stages)),
        _seed_and_agreement(stages),
        "## Data",
        table(("", ""), _data(stages)),
        LICENCE,
        "## Made with",
        made_with(),
        "## Recipe",
        yaml_block(recipe_text(plan.variant)),
    ]
    return "\n\n".join(parts) + "\n"


def _trained(stages: Stages) -> Iterable[tuple[str, ...]]:
    for name, artifact in stages.artifacts.items():
        stage, test = stages.plan.stage(name), artifact.metrics["test"]
        yield (
            name,
            f"{stage.spec.model.kind}{_bits(stage)}",
            ", ".join(stage.teacher_names) or "labels",
            " + ".join(in_words(term) for term in stage.spec.objective),
            str(stage.train.epochs_run),
            share(test["correct"], test["total"]),
        )


def _bits(stage: StagePlan) -> str:
    """Return the bits of a quantised stage's weights and activations, as in ` W4A8`."""
    return f" {stage.spec.quantize}" if stage.spec.quantize else ""


def _data(stages: Stages) -> Iterable[tuple[str, str]]:
    dataset = stages.dataset
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    yield "source", f"`{in_words(stages.plan.recipe.data.source)}`"  # type: ignore[arg-type]
    yield "sha256 of its content", f"`{stages.plan.fingerprint}`"
    yield "rows", ", ".join(f"{name} {len(split):,}" for name, split in splits.items())


def _parity_cells(form: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if form is None:
        return ("", "", "not compared")
    if form.get("not_run"):
        return ("", "", f"not run here: {form['not_run']}")
    error = form["comparison"]["max_error_over_std"]
    same = f"{100 * form['comparison']['top1_agreement']:.2f} %"
    return ("not finite" if error is None else f"{error:.1e}", same, "passed" if form["passed"] else "**FAILED**")


def _latency(name: str, bench: Mapping[str, Any]) -> tuple[str, ...]:
    environment, engine, percentiles = bench["environment"], bench["engine"], bench["latency"]["percentiles"]
    device = environment.get("device_model") or environment.get("cpu_model") or environment.get("machine", "unknown")
    if "target" in bench:
        device = f"{bench['target']['name']}: {device}"
    times = (percentiles.get(each, {}).get("measured_ms") for each in ("p50", "p90"))
    quick = " (quick)" if bench["quick"] else ""
    p50, p90 = (milliseconds(each) for each in times)
    threads, batch = str(engine["threads"]), str(bench["batch"])
    return (name, device, f"{engine['name']} {engine['version']}", threads, batch, p50 + quick, p90)


def _seed_and_agreement(stages: Stages) -> str:
    seeds, seed = stages.plan.recipe.all_seeds, stages.plan.variant.seed
    among = f" of {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    share = stages.artifacts[stages.plan.recipe.exported_stage].metrics["agreement_with_teacher"]
    agree = "" if share is None else f" Student and teacher agree on {100 * share:.2f} % of the test rows."
    return f"Seed {seed}{among}.{agree}"
