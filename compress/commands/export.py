"""Verbs that make bundles and prove them: export, export engine, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from compress.commands.bundles import is_bundle
from compress.commands.options import engine_options, json_option, opset_option, run_options
from compress.commands.ready_options import export_ready, ready_student_options
from compress.commands.recipe_runs import prepared, run_until
from runtime.errors import UsageError


@click.command()
@click.argument("recipe", required=False)
@ready_student_options
@opset_option
@run_options
def export(recipe: str | None, as_json: bool, **options: Any) -> None:
    """Write the bundle of a recipe's deployed stage; trains what is missing.

    With --weights it is the bundle of a student that was trained elsewhere, proven in the same way. With --opset it is
    the same student for an older engine, and proven too: below RECIPE@opsetN, beside the recipe's own.

    \b
    Example:
      edgefold export quickstart
      edgefold export quickstart --opset 17
      edgefold export --weights student.safetensors --model wrn:16-2 --input 32x32x3 --classes 10 \\
        --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26 --data rows.npz --formats onnx,int8 --output bundle
    """
    if export_ready(recipe, as_json, options):
        return
    assert recipe is not None  # export_ready refused
    # What was once proven is not proven in another opset.
    run_until(recipe, "verify" if options["opset"] else "export", as_json, **options)


@click.command(name="export engine")
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "formats", multiple=True, help="Build of this format; may be repeated [default: as wanted].")
@click.option("--capability", "capabilities", multiple=True, metavar="SM86",
              help="GPU to build for (TensorRT-RTX only); may be repeated [default: what is at hand].")  # fmt: skip
@click.option("--module", type=click.Choice(["tensorrt", "tensorrt_rtx"]), help="[default: the first that builds here]")
@click.option("--profile", "profiles", multiple=True, metavar="1,8,64",
              help="Batch sizes of a profile; may be repeated [default: those of the bundle].")  # fmt: skip
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="Most memory of a layer.")
@click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Measure no kernel twice (not on RTX, which measures none).")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Write engines here and leave the bundle as it is.")  # fmt: skip
@json_option
def export_engine(bundle: Path, as_json: bool, **options: Any) -> None:
    """Build TensorRT engines of a bundle's ONNX files, on the device or for it; needs no torch.

    Without --format it builds what the recipe wanted and nobody has built yet, or of onnx.

    \b
    Example:
      edgefold export engine runs/quickstart/bundle
      edgefold export engine runs/quickstart/bundle --format fp16 --capability sm86 --capability sm89
    """
    from compress.commands.engines import build, print_engines

    print_engines(build(bundle, **options), as_json)


@click.command()
@click.argument("target")
@click.option("--against", metavar="FILE or FORMAT", help="Compare with it and name the node that departs.")
@click.option("--format", "format_name", metavar="NAME", help="With --against: the bundle's format to judge.")
@click.option("--data", type=click.Path(path_type=Path), help="With --against: .npz with inputs, labels, row_ids.")
@click.option("--bundle", type=click.Path(path_type=Path), help="With --against: the bundle whose samples are run.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="With --against: of values on the way.")
@engine_options
@run_options
def verify(
    target: str, against: str | None, format_name: str | None, data: Path | None, bundle: Path | None,
    tolerance: float | None, as_json: bool, engine: str | None, provider: str | None, precision: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Prove that every exported format is the model that was trained.

    TARGET is a recipe (compared with torch on test rows) or a bundle folder (compared with its own samples; no torch).
    With --against it is an ONNX file, or a bundle with --format: both models run with all their values as outputs.

    \b
    Example:
      edgefold verify quickstart
      edgefold verify runs/quickstart/bundle
      edgefold verify runs/quickstart/bundle --format int8 --against onnx
      edgefold verify mine.onnx --against other.onnx --data rows.npz
      edgefold verify runs/quickstart/bundle --engine openvino
    """
    from compress.terminal.console import Narrator
    from compress.terminal.parity import print_parity
    from runtime.runners.choice import EngineChoice

    if against is not None:
        from compress.against import verify_against
        from compress.against_text import print_verdict, require_agreement

        verdict = verify_against(
            Path(target), against, format=format_name, data=data, bundle=bundle, tolerance=tolerance
        )
        print_verdict(verdict, as_json)
        require_agreement(verdict)
        return
    if any(option is not None for option in (format_name, data, bundle, tolerance)):
        raise UsageError("--format, --data, --bundle and --tolerance go with --against", "Add it.")
    choice = EngineChoice(engine, provider, precision)  # type: ignore[arg-type]  # it checks the names
    if is_bundle(target):
        from export.verify import require_parity, verify_bundle

        reports = verify_bundle(Path(target), choice=choice)
        print_parity([report.to_json() for report in reports], as_json)
        for report in reports:
            require_parity(report)
        return
    if choice != EngineChoice():
        raise UsageError(
            "--engine, --provider and --precision are for a bundle; a recipe's engines are those of its benchmark",
            "Name the bundle folder, or write `benchmark: [local, {local: {engine: openvino}}]` in the recipe.",
        )
    plans, settings = prepared(target, **options)
    from compress.pipeline import run_plans
    from compress.stages import run_folder

    outcome = run_plans(plans, settings, Narrator(), until="verify")
    parities = [
        json.loads((run_folder(plan, settings) / "parity.json").read_text()) for plan in plans if plan.recipe.export
    ]
    if not parities:
        raise UsageError(f"recipe {target} exports nothing", "Add `export: {stage: ...}` to it.")
    print_parity([form for parity in parities for form in parity["formats"].values()], as_json)
    outcome.require_gates()


VERBS = (export, export_engine, verify)
