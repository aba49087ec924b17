"""The `edgefold` command. Imports nothing heavy at module level: `edgefold --help` must not wait for torch."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.ready_options import export_ready, ready_student_options
from runtime.errors import BundleError, DataError, EdgefoldError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from compress.plan import Plan
    from compress.stages import Settings
    from compress.variant_run import Step

Function = TypeVar("Function", bound=Callable[..., Any])

EXTRAS = {
    "torch",
    "pydantic",
    "safetensors",
    "filelock",
    "pyarrow",
    "PIL",
    "sklearn",
    "onnx",
    "onnxscript",
    "matplotlib",
    "jinja2",
}


class EdgefoldGroup(click.Group):
    """Prints an EdgefoldError as message and remedy, and ends with its exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take a verb of two words, `export engine`, before the one that its first word is."""
        verb = " ".join(args[:2])
        return (verb, self.commands[verb], args[2:]) if verb in self.commands else super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgefoldError as error:
            _fail(error, ctx.params.get("debug", False))
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in EXTRAS:
                raise
            missing = MissingExtraError(f"{error.name} is not installed", "pip install 'edgefold[train]'")
            _fail(missing, ctx.params.get("debug", False))
        except KeyboardInterrupt:
            click.echo("interrupted; `edgefold run` continues where this stopped", err=True)
            sys.exit(130)


def _fail(error: EdgefoldError, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {error.message}", err=True)
    if error.remedy:
        click.echo(error.remedy, err=True)
    sys.exit(error.exit_code)


@click.group(cls=EdgefoldGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="edgefold")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Turn one YAML recipe into a small classifier that is measured on the device it will run on.

    \b
    Start here:
      edgefold run quickstart
    """
    # torch's OpenMP threads spin while they wait, which on a machine with other work takes the cores from those they
    # wait for (a small network's step took 10 to 30 times as long on two busy cores). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


runs_option = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
    help="Folder for results; finished stages in it are reused.",
)  # fmt: skip
data_option = click.option(
    "--data-root", type=click.Path(path_type=Path), default=None,
    help="Folder with the data sets [default: data.root of the recipe, then $EDGEFOLD_DATA].",
)  # fmt: skip
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
checkpoint_option = click.option(
    "--checkpoint-every", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
    help="Least time between training checkpoints.",
)  # fmt: skip


seed_option = click.option(
    "--seed", "seeds", type=int, multiple=True, help="Only this seed of the recipe's; may be repeated."
)
variant_option = click.option(
    "--variant", "variants", multiple=True, metavar="NAME",
    help="Only this row of the recipe's sweep, by label or by number from 1; may be repeated.",
)  # fmt: skip
scale_option = click.option(
    "--scale", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, metavar="FRACTION",
    help="Run this fraction of epochs and rows; results are marked, and published numbers not judged.",
)  # fmt: skip


def engine_options(function: Function) -> Function:
    """Add the options that say on what a model runs, for `_engine_arguments`."""
    for option in (
        click.option("--precision", metavar="NAME", help="What OpenVINO computes in: fp32 (default) or bf16."),
        click.option(
            "--provider", metavar="NAME",
            help="What ONNX Runtime runs on: cpu (default), cuda, tensorrt, nv-tensorrt-rtx, openvino, xnnpack, "
            "coreml, qnn; refused where it would fall back to the CPU.",
        ),
        click.option(
            "--engine", metavar="NAME", help="onnxruntime or openvino, in the place of the format's own engine."
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def file_options(function: Function) -> Function:
    """Add the options that describe an ONNX file without a bundle, for `_file_arguments`."""
    for option in (
        click.option("--max-size", type=click.IntRange(min=1), metavar="MIB",
                     help="Of an ONNX file: the largest that is read  [default: 2048]"),
        click.option("--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
                     help="Of an ONNX file: sizes that it leaves open, by input or output; may be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


def _file_arguments(options: dict[str, Any]) -> list[Any]:
    shapes = [part for shape in options["shapes"] for part in ("--shape", shape)]
    return shapes + (["--max-size", options["max_size"]] if options["max_size"] else [])


def _format_arguments(options: dict[str, Any]) -> list[Any]:
    return ["--format", options["format_name"]] if options["format_name"] else []


def _engine_arguments(options: dict[str, Any]) -> list[Any]:
    given = {name: options[name] for name in ("engine", "provider", "precision") if options[name] is not None}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


target_option = click.option(
    "--target", "targets", multiple=True, metavar="NAME", help="Measure on this device of --targets; may be repeated."
)  # fmt: skip
targets_option = click.option(
    "--targets", "targets_file", type=click.Path(path_type=Path), default=Path("targets.yaml"), show_default=True,
    help="File that says how the devices are reached.",
)  # fmt: skip


def selection_options(function: Function) -> Function:
    """Add the options that say which of a recipe's runs are meant."""
    for option in (scale_option, variant_option, seed_option):
        function = option(function)
    return function


def run_options(function: Function) -> Function:
    """Add the options that every verb has which may train."""
    for option in (json_option, checkpoint_option, device_option, data_option, runs_option):
        function = option(function)
    return selection_options(function)


@main.command()
@click.argument("recipe")
@click.option("--quick", is_flag=True, help="Measure latency for 3 s instead of 10, and label it so.")
@targets_option
@run_options
def run(recipe: str, quick: bool, as_json: bool, **options: Any) -> None:
    """Run a recipe end to end: train, fold, export, verify, measure, report.

    Devices that `benchmark:` names are those of --targets; a missed limit of one ends with exit code 3.

    \b
    Example:
      edgefold run quickstart
      edgefold run subclass-distillation/mnist-2x5 --data-root ~/data
      edgefold run subclass-distillation/mnist-2x5 --data-root ~/data --scale 0.02 --seed 0
    """
    _run(recipe, "benchmark", as_json, quick=quick, **options)


@main.command()
@click.argument("recipe")
@click.option("--stage", help="Train this stage only, with those it needs.")
@run_options
def train(recipe: str, stage: str | None, as_json: bool, **options: Any) -> None:
    """Train a recipe's stages, or one of them, and stop before export.

    \b
    Example:
      edgefold train quickstart --stage teacher
    """
    _run(recipe, "train", as_json, stage=stage, **options)


@main.command()
@click.argument("recipe", required=False)
@ready_student_options
@run_options
def export(recipe: str | None, as_json: bool, **options: Any) -> None:
    """Write the bundle of a recipe's deployed stage; trains what is missing.

    With --weights it is the bundle of a student that was trained elsewhere, proven in the same way.

    \b
    Example:
      edgefold export quickstart
      edgefold export --weights student.safetensors --model wrn:16-2 --input 32x32x3 --classes 10 \\
        --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26 --data rows.npz --formats onnx,int8 --output bundle
    """
    if export_ready(recipe, as_json, options):
        return
    assert recipe is not None  # export_ready refused
    _run(recipe, "export", as_json, **options)


@main.command(name="export engine")
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
    from compress.engine_command import build, print_engines

    print_engines(build(bundle, **options), as_json)


@main.command()
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
    from compress import terminal
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
    if _is_bundle(target):
        from export.verify import require_parity, verify_bundle

        reports = verify_bundle(Path(target), choice=choice)
        terminal.print_parity([report.to_json() for report in reports], as_json)
        for report in reports:
            require_parity(report)
        return
    if choice != EngineChoice():
        raise UsageError(
            "--engine, --provider and --precision are for a bundle; a recipe's engines are those of its benchmark",
            "Name the bundle folder, or write `benchmark: [local, {local: {engine: openvino}}]` in the recipe.",
        )
    plans, settings = _prepare(target, **options)
    from compress.pipeline import run_plans
    from compress.stages import run_folder

    outcome = run_plans(plans, settings, terminal.Narrator(), until="verify")
    parities = [
        json.loads((run_folder(plan, settings) / "parity.json").read_text()) for plan in plans if plan.recipe.export
    ]
    if not parities:
        raise UsageError(f"recipe {target} exports nothing", "Add `export: {stage: ...}` to it.")
    terminal.print_parity([form for parity in parities for form in parity["formats"].values()], as_json)
    outcome.require_gates()


@main.command()
@click.argument("bundle")
@click.option(
    "--format",
    "format_name",
    help="Which of the bundle's formats, or best: the fastest that runs  [default: onnx, or the target's]",
)
@engine_options
@file_options
@click.option("--data", type=click.Path(path_type=Path), help=".npz with inputs, labels, row_ids  [default: samples]")
@click.option("--threads", type=click.IntRange(min=1), help="[default: 1, or the target's]")
@click.option("--batch", type=click.IntRange(min=1), help="[default: 1, or the target's]")
@click.option(
    "--scenario",
    type=click.Choice(["single", "offline", "server"]),
    default="single",
    show_default=True,
    help="Latency of one call after the other, rows a second in batches, or the rate of random arrivals that is held.",
)
@click.option("--bound-ms", type=click.FloatRange(min=0, min_open=True), help="Of a server: latency, queue included.")
@click.option("--percentile", type=click.FloatRange(50, 99.99), help="Of a server: queries in the bound  [default: 99]")
@click.option("--quick", is_flag=True, help="3 s instead of 10, labelled so.")
@click.option("--loadgen", is_flag=True, help="Under MLCommons LoadGen, as a cross-check of the own loop.")
@click.option("--cuda-graph", is_flag=True, help="Of a TensorRT engine: launch it as one CUDA graph.")
@click.option("--without-copies", is_flag=True, help="Of a TensorRT engine: do not time copies from and to the host.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write bench.json here.")
@target_option
@targets_option
@runs_option
@json_option
def bench(
    bundle: str, runs: Path, as_json: bool, output: Path | None, quick: bool, targets: tuple[str, ...],
    targets_file: Path, **options: Any,
) -> None:  # fmt: skip
    """Measure the latency of a bundle on this machine, or on devices that are reached by ssh or adb.

    BUNDLE is a bundle folder, a recipe that was run, or the ONNX file of any classifier, with made-up inputs. A missed
    limit of a target ends with exit code 3.

    \b
    Example:
      edgefold bench runs/quickstart/bundle --threads 2
      edgefold bench runs/quickstart/bundle --engine openvino
      edgefold bench mine.onnx --shape input=1x3x224x224
      edgefold bench quickstart --target pi4 --target phone
      edgefold bench quickstart --scenario server --bound-ms 10
    """
    folder, format_name = _bundle_of(bundle, runs), options["format_name"]
    settings = {"threads": options["threads"], "batch": options["batch"]}
    engine = _engine_arguments(options)
    engine += [f"--{name.replace('_', '-')}" for name in ("cuda_graph", "without_copies") if options[name]]
    engine += [f"--scenario={options['scenario']}"]
    engine += [f"--{name.replace('_', '-')}={value}" for name in ("bound_ms", "percentile") if (value := options[name])]
    of_this_machine = [*_file_arguments(options), *(["--data", options["data"]] if options["data"] else [])]
    of_this_machine += ["--loadgen"] if options["loadgen"] else []
    if targets:
        from compress import target_commands

        _refuse_file(folder)
        if of_this_machine:
            raise UsageError(f"{of_this_machine[0]} is for this machine and not for --target", "Leave one of them out.")
        target_commands.bench(
            folder, targets, targets_file, formats=(format_name,) if format_name else (), overrides=settings,
            engine=engine, quick=quick, output=output, as_json=as_json,
        )  # fmt: skip
        return
    arguments = [*_format_arguments(options), *engine, *of_this_machine]
    arguments += [*(["--quick"] if quick else [])]
    arguments += [word for name, value in settings.items() if value for word in (f"--{name}", value)]
    _device_side("bench", folder, arguments, output, as_json)


@main.command()
@click.argument("bundle")
@click.option(
    "--format",
    "format_name",
    help="Which of the bundle's formats, or best: the fastest that runs  [default: onnx, or the target's]",
)
@click.option(
    "--data",
    help=".npz with inputs, labels, row_ids, or data as a recipe names it  [default: the run's test rows]",
)
@engine_options
@file_options
@click.option("--threads", type=click.IntRange(min=1), help="[default: 1, or the target's]")
@click.option("--limit", type=click.IntRange(min=1), help="First rows only.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write accuracy.json here.")
@target_option
@targets_option
@data_option
@runs_option
@json_option
def accuracy(
    bundle: str, runs: Path, as_json: bool, output: Path | None, data: str | None, data_root: Path | None,
    limit: int | None, targets: tuple[str, ...], targets_file: Path, **options: Any,
) -> None:  # fmt: skip
    """Measure the accuracy of a bundle with the engine that a device runs, here or on devices by ssh or adb.

    BUNDLE is a bundle folder, a recipe that was run, or the ONNX file of any classifier with --data. What a device
    predicts is compared with this machine row by row.

    \b
    Example:
      edgefold accuracy quickstart
      edgefold accuracy mine.onnx --data rows.npz
      edgefold accuracy runs/mnist/bundle --target pi4 --data mnist --limit 2000
    """
    from compress.labelled_rows import labelled_rows

    folder = _bundle_of(bundle, runs)
    with labelled_rows(folder, data, data_root=data_root, cache=runs / "cache", limit=limit) as rows:
        if targets:
            from compress import target_commands

            _refuse_file(folder)
            target_commands.accuracy(
                folder, targets, targets_file, formats=(options["format_name"],) if options["format_name"] else (),
                overrides={"threads": options["threads"]}, engine=_engine_arguments(options),
                rows=rows, limit=limit, output=output, as_json=as_json,
            )  # fmt: skip
            return
        arguments = [*_format_arguments(options), *_engine_arguments(options), *_file_arguments(options)]
        arguments += ["--data", rows] if rows else []
        arguments += ["--threads", options["threads"]] if options["threads"] else []
        arguments += ["--limit", limit] if limit else []
        _device_side("accuracy", folder, arguments, output, as_json)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it here, as SVG.")
@runs_option
@json_option
def compare(names: tuple[str, ...], runs: Path, csv: Path | None, plot: Path | None, as_json: bool) -> None:
    """Show which student to ship of several finished runs, or whether two latency results differ.

    RUN is a recipe that was run, or its folder. Of .json files that `edgefold bench --output` wrote, each is compared
    with the first: the ratio of medians with its 95 % bootstrap interval.

    \b
    Example:
      edgefold compare quickstart
      edgefold compare before.json after.json
    """
    from compress.compare_command import compare as compare_results

    compare_results(names, runs, as_json=as_json, csv=csv, plot=plot)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what an exported file is, what made it, and what it holds; compare what has a checksum with it.

    FILE is a bundle's folder, any .onnx file, an engine with its .json beside it, or a stage's folder.

    \b
    Example:
      edgefold inspect runs/quickstart/bundle/model.onnx
    """
    _device_side("inspect", file, [], None, as_json)


@main.command()
@click.argument("recipe")
@targets_option
@run_options
def report(recipe: str, as_json: bool, **options: Any) -> None:
    """Write report.html again from a recipe's results; makes what is missing.

    \b
    Example:
      edgefold report quickstart
    """
    _run(recipe, "benchmark", as_json, **options)


@main.command()
@click.argument("recipe")
@click.option("--stage", help="Analyse this stage only.")
@click.option("--transfer", metavar="DATA", help="Also fit a linear probe on other data: a kind or `kind: {options}`.")
@click.option(
    "--transfer-rows", type=click.IntRange(min=1), metavar="N", help="Train rows of DATA, drawn [default: all]."
)
@click.option("--no-plots", is_flag=True, help="Leave out t-SNE and the plots.")
@run_options
def analyse(
    recipe: str, stage: str | None, transfer: str | None, transfer_rows: int | None, no_plots: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Compare student and teacher in the papers' measures; trains what is missing.

    Writes analysis.json and analysis/*.svg into the run's folder.

    \b
    Example:
      edgefold analyse quickstart
      edgefold analyse my-recipe.yaml --transfer cifar100 --transfer-rows 10000 --data-root ~/data
    """
    from compress import terminal
    from compress.analysis.command import analyse_plans
    from compress.analysis.transfer import open_transfer

    if transfer_rows is not None and transfer is None:
        raise UsageError("--transfer-rows says nothing without --transfer", "Add --transfer DATA.")
    plans, settings = _prepare(recipe, **options)
    narrator = terminal.Narrator()
    probe = open_transfer(transfer, settings, transfer_rows) if transfer else None
    analyses = analyse_plans(plans, settings, narrator, only=stage, transfer=probe, with_plots=not no_plots)
    narrator.close()
    terminal.print_analyses(analyses, as_json)


@main.command()
@click.argument("recipes", nargs=-1)
@targets_option
@json_option
def check(recipes: tuple[str, ...], targets_file: Path, as_json: bool) -> None:
    """Check recipes without data, GPU or training; without a name, all that come with the package.

    The devices that `benchmark:` names are looked up where --targets is there.

    \b
    Example:
      edgefold check my-recipe.yaml
    """
    from compress import terminal
    from compress.device_run import require_devices
    from compress.library import find_recipe, shipped_recipes
    from compress.recipe_warnings import warnings_of
    from compress.variants import load_variants

    paths = [find_recipe(name) for name in recipes] or list(shipped_recipes().values())
    results: list[dict[str, Any]] = []
    errors: list[EdgefoldError] = []
    for path in paths:
        try:
            variants = load_variants(path)
            if targets_file.exists():
                require_devices([variant.recipe for variant in variants], targets_file)
            results.append(
                {
                    "recipe": str(path),
                    "stages": len(variants[0].recipe.stages),
                    "runs": len(variants),
                    "warnings": list(warnings_of(variants)),
                    "error": None,
                }
            )
        except EdgefoldError as error:
            errors.append(error)
            results.append({"recipe": str(path), "stages": None, "runs": None, "warnings": [], "error": error.message})
    terminal.print_check(results, as_json)
    if errors:
        raise UsageError("\n".join(map(str, errors)))


@main.command()
@click.argument("recipe")
@runs_option
@data_option
@json_option
@selection_options
def plan(recipe: str, as_json: bool, **options: Any) -> None:
    """Show the resolved stages of a recipe, and which of them are finished.

    \b
    Example:
      edgefold plan quickstart
    """
    from compress import terminal

    plans, settings = _prepare(recipe, **options)
    terminal.print_plans(plans, settings.runs, as_json)


@main.command(name="list")
@click.argument("what", type=click.Choice(["objectives", "models", "datasets", "recipes"]), required=False)
@json_option
def list_(what: str | None, as_json: bool) -> None:
    """List what a recipe can name: objectives, models, data sets, and the recipes that come along.

    `edgefold list recipes` also says what each needs and costs, in multiply-accumulates of all training steps.

    \b
    Example:
      edgefold list objectives
    """
    from compress import terminal
    from compress.catalogue import catalogue, recipes_with_cost

    if what == "recipes":
        sections = {what: recipes_with_cost()}
    else:
        sections = {name: rows for name, rows in catalogue().items() if what in (None, name)}
    terminal.print_catalogue(sections, as_json)


@main.command()
@target_option
@targets_option
@click.option("--bundle", help="With --target: which of its formats the device's engine is too old for.")
@runs_option
@json_option
def doctor(targets: tuple[str, ...], targets_file: Path, bundle: str | None, runs: Path, as_json: bool) -> None:
    """Show what is installed, which engines and devices are usable here, and what to install for the rest.

    With --target the same of a device; exit code 2 where it lacks what every measurement needs.

    \b
    Example:
      edgefold doctor
      edgefold doctor --target pi4 --bundle quickstart
    """
    if targets:
        from compress import target_commands

        folder = _bundle_of(bundle, runs) if bundle else None
        target_commands.doctor(targets, targets_file, bundle=folder, as_json=as_json)
        return
    if bundle:
        raise UsageError("--bundle is for a device of --target", "For this machine: python -m runtime doctor --bundle.")
    from compress import terminal
    from compress.doctor import examine

    terminal.print_findings(examine(), as_json)


@main.group()
def data() -> None:
    """Look after the data sets that a recipe names.

    \b
    Example:
      edgefold data check mnist
    """


@data.command(name="check")
@click.argument("name")
@data_option
@json_option
def data_check(name: str, data_root: Path | None, as_json: bool) -> None:
    """Show in which formats a named data set is looked for, what is there, and what is missing; exit 2 where it is.

    \b
    Example:
      edgefold data check mnist --data-root ~/data
      edgefold data check 'amazon_reviews: {labels: polarity}'
    """
    from compress import terminal
    from compress.data_check import check_data

    found = check_data(name, data_root)
    terminal.print_data_check(found, as_json)
    if not found["complete"]:
        raise DataError(f"{name} is not complete in {found['folder']}", f"Its authors publish it at {found['origin']}")


def _prepare(
    recipe: str,
    *,
    runs: Path,
    data_root: Path | None,
    device: str = "auto",
    checkpoint_every: float = 30.0,
    quick: bool = False,
    targets_file: Path = Path("targets.yaml"),
    seeds: tuple[int, ...] = (),
    variants: tuple[str, ...] = (),
    scale: float = 1.0,
) -> tuple[tuple[Plan, ...], Settings]:
    from compress.library import find_recipe
    from compress.pipeline import plans_of
    from compress.recipe_warnings import warnings_of
    from compress.stages import Settings
    from compress.variants import Selection

    settings = Settings(runs, data_root, device, checkpoint_every, quick, targets_file)
    plans = plans_of(find_recipe(recipe), data_root, Selection(seeds, variants, scale))
    for warning in warnings_of([plan.variant for plan in plans]):
        click.echo(f"warning: {warning}", err=True)
    return plans, settings


def _run(recipe: str, until: Step, as_json: bool, *, stage: str | None = None, **options: Any) -> None:
    from compress import terminal
    from compress.pipeline import run_plans

    plans, settings = _prepare(recipe, **options)
    narrator = terminal.Narrator()
    terminal.announce(plans, settings.runs)
    outcome = run_plans(plans, settings, narrator, until=until, only=stage)
    narrator.close()
    terminal.print_outcome(outcome, recipe, until, as_json)
    outcome.require_gates()


def _is_bundle(target: str) -> bool:
    # Any folder: a recipe is a file or a name, and what a bundle lacks is for its reader to say.
    return Path(target).is_dir()


def _bundle_of(target: str, runs: Path) -> Path:
    """Return the bundle folder of a bundle path or of a recipe that was run; an ONNX file stays what it is."""
    if Path(target).is_dir() or Path(target).suffix == ".onnx":
        return Path(target)
    if Path(target).name == "bundle":
        raise BundleError(f"{target}: no such folder", "Name a bundle folder, or a recipe that was run.")
    from compress.library import find_recipe
    from compress.variants import load_variants

    recipe = load_variants(find_recipe(target))[0].recipe
    found = sorted(manifest.parent for manifest in (runs / recipe.name).rglob("bundle/manifest.json"))
    if not found:
        raise UsageError(f"recipe {recipe.name} has no bundle below {runs}", f"Run `edgefold run {target}` first.")
    if len(found) > 1:
        raise UsageError(f"recipe {recipe.name} has {len(found)} bundles", "Name one: " + ", ".join(map(str, found)))
    return found[0]


def _refuse_file(bundle: Path) -> None:
    if not bundle.is_dir():
        raise UsageError(f"{bundle}: a device of --target takes a bundle", "Measure the file here, without --target.")


def _device_side(verb: str, bundle: Path, arguments: list[Any], output: Path | None, as_json: bool) -> None:
    """Run a verb of `python -m runtime` in this process and end with its exit code."""
    from runtime.__main__ import main as runtime_main

    extra = (["--output", output] if output else []) + (["--json"] if as_json else [])
    code = runtime_main([verb, str(bundle), *map(str, [*arguments, *extra])])
    if code:
        sys.exit(code)
