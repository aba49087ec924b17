"""What `python -m runtime bench` measures, as its options say."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.arguments import choice_of, default_format, gpu_options_of, opened
from runtime.errors import UsageError

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.processes import Candidate
    from runtime.server import ServerPlan


def loadgen_document(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what MLCommons LoadGen measured."""
    from runtime import measure
    from runtime.loadgen import under_loadgen

    bundle = opened(options)
    formats = options.format or [default_format(bundle)]
    alone = options.batch in (None, 1) and options.processes in (None, 1) and options.scenario == "single"
    if len(formats) > 1 or not alone:
        raise UsageError("--loadgen measures one format, one row a query, in one process", "Leave the others out.")
    plan = measure.QUICK if options.quick else measure.FULL
    choice = choice_of(options)
    result = under_loadgen(bundle, format=formats[0], threads=options.threads, choice=choice, plan=plan, say=say)
    return result.to_json()


def bench_documents(options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a document a format: measured in this process, or in several of their own."""
    import dataclasses

    from runtime import measure
    from runtime.bench import benchmark
    from runtime.board import require_power_mode
    from runtime.processes import measured_in_turn
    from runtime.rows import check_rows, read_rows
    from runtime.runners import BEST

    given = {"seconds": options.seconds, "calls": options.calls, "processes": options.processes}
    changes = {**_of_scenario(options), **{name: value for name, value in given.items() if value is not None}}
    plan = dataclasses.replace(measure.QUICK if options.quick else measure.FULL, **changes)
    # All that can be wrong with what was given is found here, and not by the first process after a line of progress.
    if options.power_mode is not None:
        require_power_mode(options.power_mode)
    bundle = opened(options)
    formats = options.format or [default_format(bundle)]
    for each in formats:
        if each != BEST:
            bundle.format(each)
    options.batch = options.batch or _default_batch(bundle, options.scenario)
    rows = None
    if options.data is not None:
        rows = read_rows(options.data)
        check_rows(rows, bundle, str(options.data))
    if plan.processes > 1 or len(formats) > 1:
        _say_what_is_built(options, bundle, formats, say)
        return measured_in_turn([_candidate(options, each) for each in formats], plan, say=say)
    result = benchmark(
        bundle,
        format=formats[0],
        rows=rows,
        threads=options.threads,
        batch=options.batch,
        choice=choice_of(options),
        on_gpu=gpu_options_of(options),
        plan=plan,
        progress=say,
        scenario=options.scenario,
        server=_server_plan(options, plan.seconds),
    )
    return [result.to_json()]


def _say_what_is_built(
    options: argparse.Namespace, bundle: Bundle, formats: list[str], say: Callable[[str], None]
) -> None:
    """Say which engines the first process has to build, which takes its time and prints nothing here."""
    from runtime.runners import runs_on

    choice = choice_of(options)
    if not choice.builds:
        return
    from runtime.engine_cache import wanted_engine

    for each in formats:
        if runs_on(each, choice):  # else the process itself says why not
            wanted = wanted_engine(bundle, each, choice.tensorrt_module, options.batch)
            if wanted.kept() is None:
                say(wanted.announcement)


def _of_scenario(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a scenario changes of the plan: no percentile of offline batches is asked for, one process serves."""
    if options.scenario != "server" and not (options.bound_ms is None and options.percentile is None):
        raise UsageError("--bound-ms and --percentile are of --scenario server", "Name it, or leave them out.")
    if options.scenario == "server":
        if options.bound_ms is None:
            raise UsageError("--scenario server needs a bound of latency", "Give it: --bound-ms 10.")
        if options.calls is not None or options.processes not in (None, 1):
            raise UsageError("--calls and --processes are not of --scenario server", "Give --seconds for a longer try.")
        return {"processes": 1}
    return {"calls": 10} if options.scenario == "offline" else {}


def _server_plan(options: argparse.Namespace, seconds: float) -> ServerPlan | None:
    from fractions import Fraction

    from runtime.server import ServerPlan

    if options.scenario != "server":
        return None
    percentile = Fraction(99) if options.percentile is None else Fraction(options.percentile)
    return ServerPlan(round(options.bound_ms * 1e6), percentile / 100, seconds)


def _default_batch(bundle: Bundle, scenario: str) -> int:
    """Return 1, and offline the largest batch that was verified at export."""
    if scenario != "offline":
        return 1
    return bundle.fixed_batch or max(bundle.batch_sizes, default=1)


def _candidate(options: argparse.Namespace, format: str) -> Candidate:
    """Return what a process of its own is told to measure."""
    from runtime.processes import Candidate

    words = [f"--format={format}", f"--threads={options.threads}", f"--batch={options.batch}"]
    words += choice_of(options).arguments
    words += [f"--shape={shape}" for shape in options.shape or ()]
    words += [f"--max-size={options.max_size}"]
    words += [f"--data={options.data.resolve()}"] if options.data is not None else []
    words += ["--cuda-graph"] if options.cuda_graph else []
    words += ["--without-copies"] if options.without_copies else []
    words += [f"--scenario={options.scenario}"]
    words += [f"--bound-ms={options.bound_ms}"] if options.bound_ms is not None else []
    words += [f"--percentile={options.percentile}"] if options.percentile is not None else []
    return Candidate(options.bundle, tuple(words))
