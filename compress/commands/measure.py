"""Verbs that measure, and compare what was measured: bench, accuracy, compare."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from compress.commands.bundles import bundle_of, device_side, require_bundle
from compress.commands.options import (
    data_option,
    engine_arguments,
    engine_given,
    engine_options,
    file_arguments,
    file_options,
    format_arguments,
    format_option,
    json_option,
    runs_option,
    target_option,
    targets_option,
)
from runtime.errors import UsageError


@click.command()
@click.argument("bundle")
@format_option
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
    folder, format_name = bundle_of(bundle, runs), options["format_name"]
    settings = {"threads": options["threads"], "batch": options["batch"]}
    further = [f"--{name.replace('_', '-')}" for name in ("cuda_graph", "without_copies") if options[name]]
    further += [f"--scenario={options['scenario']}"]
    further += [f"--{name.replace('_', '-')}={options[name]}" for name in ("bound_ms", "percentile") if options[name]]
    of_this_machine = [*file_arguments(options), *(["--data", options["data"]] if options["data"] else [])]
    of_this_machine += ["--loadgen"] if options["loadgen"] else []
    if targets:
        from compress.commands import targets as on_targets

        require_bundle(folder)
        if of_this_machine:
            raise UsageError(f"{of_this_machine[0]} is for this machine and not for --target", "Leave one of them out.")
        on_targets.bench(
            folder, targets, targets_file, formats=(format_name,) if format_name else (),
            overrides={**settings, **engine_given(options)}, options=further, quick=quick, output=output,
            as_json=as_json,
        )  # fmt: skip
        return
    arguments = [*format_arguments(options), *engine_arguments(options), *further, *of_this_machine]
    arguments += [*(["--quick"] if quick else [])]
    arguments += [word for name, value in settings.items() if value for word in (f"--{name}", value)]
    device_side("bench", folder, arguments, output, as_json)


@click.command()
@click.argument("bundle")
@format_option
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

    folder = bundle_of(bundle, runs)
    notify = functools.partial(click.echo, err=True)
    with labelled_rows(folder, data, data_root=data_root, cache=runs / "cache", limit=limit, notify=notify) as rows:
        if targets:
            from compress.commands import targets as on_targets

            require_bundle(folder)
            on_targets.accuracy(
                folder, targets, targets_file, formats=(options["format_name"],) if options["format_name"] else (),
                overrides={"threads": options["threads"], **engine_given(options)},
                rows=rows, limit=limit, output=output, as_json=as_json,
            )  # fmt: skip
            return
        arguments = [*format_arguments(options), *engine_arguments(options), *file_arguments(options)]
        arguments += ["--data", rows] if rows else []
        arguments += ["--threads", options["threads"]] if options["threads"] else []
        arguments += ["--limit", limit] if limit else []
        device_side("accuracy", folder, arguments, output, as_json)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it here, as SVG.")
@runs_option
@json_option
def compare(names: tuple[str, ...], runs: Path, csv: Path | None, plot: Path | None, as_json: bool) -> None:
    """Show which student to ship of several finished runs, or whether two latency results differ.

    RUN is a recipe that was run, or its folder. Of .json files that `edgefold bench --output` wrote, each is compared
    with the first, format by format and device by device; the results of one file are compared with its first one. What
    is said is the ratio of medians with its 95 % bootstrap interval.

    \b
    Example:
      edgefold compare quickstart
      edgefold compare before.json after.json
      edgefold compare formats.json
    """
    from compress.commands.comparison import compare as compare_results

    compare_results(names, runs, as_json=as_json, csv=csv, plot=plot)


VERBS = (bench, accuracy, compare)
