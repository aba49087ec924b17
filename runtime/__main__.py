"""`python -m runtime`: measures, inspects and runs a bundle on the device itself.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the work failed, 2 what was given
cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import EdgefoldError, UsageError

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.processes import Candidate
    from runtime.runners.choice import EngineChoice
    from runtime.server import ServerPlan

INTERRUPTED = 130
DEFAULT_FORMAT = "onnx"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # class names may hold what the console cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        options.verb(options)
        sys.stdout.flush()
    except EdgefoldError as error:
        return _failed(str(error), error.exit_code, options)
    except BrokenPipeError:  # the reader (`| head`) has seen enough; the interpreter's exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(str(error), 1, options)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED, options)
    return 0


def bench(options: argparse.Namespace) -> None:
    from runtime import display
    from runtime.files import check_output

    check_output(options.output)
    if options.loadgen:
        _bench_under_loadgen(options)
        return
    documents = _measured(options)
    document = documents[0] if len(documents) == 1 else {"kind": "benches", "results": documents}
    _finish(document, lambda: "\n\n".join(display.bench_text(each) for each in documents), options)


def _bench_under_loadgen(options: argparse.Namespace) -> None:
    from runtime import display, measure
    from runtime.loadgen import under_loadgen

    bundle = _opened(options)
    formats = options.format or [_default_format(bundle)]
    alone = options.batch in (None, 1) and options.processes in (None, 1) and options.scenario == "single"
    if len(formats) > 1 or not alone:
        raise UsageError("--loadgen measures one format, one row a query, in one process", "Leave the others out.")
    plan = measure.QUICK if options.quick else measure.FULL
    result = under_loadgen(bundle, format=formats[0], threads=options.threads, choice=_choice(options), plan=plan)
    _finish(result.to_json(), lambda: display.loadgen_text(result.to_json()), options)


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
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
    bundle = _opened(options)
    formats = options.format or [_default_format(bundle)]
    for each in formats:
        if each != BEST:
            bundle.format(each)
    options.batch = options.batch or _default_batch(bundle, options.scenario)
    rows = None
    if options.data is not None:
        rows = read_rows(options.data)
        check_rows(rows, bundle, str(options.data))
    if plan.processes > 1 or len(formats) > 1:
        return measured_in_turn([_candidate(options, each) for each in formats], plan, say=_progress)
    result = benchmark(
        bundle,
        format=formats[0],
        rows=rows,
        threads=options.threads,
        batch=options.batch,
        choice=_choice(options),
        on_gpu=_on_gpu(options),
        plan=plan,
        progress=_progress,
        scenario=options.scenario,
        server=_server_plan(options, plan.seconds),
    )
    return [result.to_json()]


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
    words += [f"--{name}={value}" for name, value in _choice(options).to_json().items()]
    words += [f"--shape={shape}" for shape in options.shape or ()]
    words += [f"--max-size={options.max_size}"]
    words += [f"--data={options.data.resolve()}"] if options.data is not None else []
    words += ["--cuda-graph"] if options.cuda_graph else []
    words += ["--without-copies"] if options.without_copies else []
    words += [f"--scenario={options.scenario}"]
    words += [f"--bound-ms={options.bound_ms}"] if options.bound_ms is not None else []
    words += [f"--percentile={options.percentile}"] if options.percentile is not None else []
    return Candidate(options.bundle, tuple(words))


def _on_gpu(options: argparse.Namespace) -> dict[str, bool]:
    """Return the options of a TensorRT engine that were given; none for the other engines."""
    given = {"copies": False} if options.without_copies else {}
    return {**given, "cuda_graph": True} if options.cuda_graph else given


def accuracy(options: argparse.Namespace) -> None:
    from runtime import display
    from runtime.accuracy import evaluate, read_reference, reference_from_logits
    from runtime.files import check_output
    from runtime.rows import read_rows
    from runtime.runners import open_runner

    check_output(options.output)
    bundle = _opened(options)
    if options.data is None and not bundle.samples_file:
        raise UsageError(
            f"{options.bundle}: a model without a bundle has no labelled rows",
            remedy="Give them: --data ROWS.npz with inputs, labels, row_ids (numpy.savez).",
        )
    rows = bundle.samples() if options.data is None else read_rows(options.data)
    rows = rows if options.limit is None else rows.first(options.limit)
    reference = reference_from_logits(rows) if options.reference is None else read_reference(options.reference)
    with open_runner(bundle, _format(bundle, options), options.threads, _choice(options)) as runner:
        _note(runner.notes)
        result = evaluate(
            runner,
            rows,
            batch=options.batch,
            reference=reference,
            origin=str(options.data or "samples"),
            progress=_progress,
        )
    _finish(result.to_json(), lambda: display.accuracy_text(result), options)


def inspect(options: argparse.Namespace) -> None:
    from runtime import inspection, inspection_text

    found = inspection.inspect(options.bundle)
    _finish(found.to_json(), lambda: inspection_text.inspected_text(found), options)


def classify(options: argparse.Namespace) -> None:
    from runtime import display
    from runtime.bundle import open_bundle
    from runtime.classify import classify, document_of, featuriser_of
    from runtime.runners import open_runner

    bundle = open_bundle(options.bundle)
    featuriser_of(bundle)  # or it is refused before texts are waited for
    texts = [text for given in options.texts for text in (_lines_of_stdin() if given == "-" else [given])]
    with open_runner(bundle, _format(bundle, options), options.threads, _choice(options)) as runner:
        _note(runner.notes)
        classified = classify(runner, texts)
    _finish(document_of(runner, classified), lambda: display.classified_text(classified), options)


def ops(options: argparse.Namespace) -> None:
    from runtime.custom_ops import instruction_set, library_path

    document = {"kind": "ops", "library": str(library_path()), "instruction_set": instruction_set()}
    _finish(document, lambda: f"{document['library']}\n{document['instruction_set']}", options)


def doctor(options: argparse.Namespace) -> None:
    from runtime.doctor import document_of, examine, findings_text

    findings = examine(options.bundle, tuple(options.format or ()))
    _finish(document_of(findings), lambda: findings_text(findings), options)


def _opened(options: argparse.Namespace) -> Bundle:
    """Open a bundle's folder, or an ONNX file without one."""
    from runtime.bare_model import is_bare_model, open_model, shape_from_text
    from runtime.bundle import open_bundle

    if is_bare_model(options.bundle):
        shapes = dict(map(shape_from_text, options.shape or ()))
        return open_model(options.bundle, shapes, most_bytes=options.max_size << 20)
    if options.shape:
        raise UsageError(f"--shape is for an ONNX file; {options.bundle} says its shapes itself")
    return open_bundle(options.bundle)


def _format(bundle: Bundle, options: argparse.Namespace) -> str:
    return str(options.format or _default_format(bundle))


def _default_format(bundle: Bundle) -> str:
    """Return what every bundle has, or the only format of a file."""
    return DEFAULT_FORMAT if bundle.samples_file else next(iter(bundle.formats))


def _choice(options: argparse.Namespace) -> EngineChoice:
    from runtime.runners.choice import EngineChoice

    return EngineChoice(options.engine, options.provider, options.precision)


def _lines_of_stdin() -> list[str]:
    """Return one text a line, an empty line too, so that the answers stand in the order of the lines."""
    return [line.rstrip("\r\n") for line in sys.stdin]


def _finish(document: dict[str, Any], text: Callable[[], str], options: argparse.Namespace) -> None:
    """Print the result first, so that a full disk cannot lose it, then write it where that was asked."""
    from runtime.files import json_text, write_json

    print(json_text(document).rstrip("\n") if options.json else text())
    output = getattr(options, "output", None)
    if output is not None:
        write_json(output, document)
        _progress(f"wrote {output}")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        _progress(f"note: {note}")


def _failed(message: str, exit_code: int, options: argparse.Namespace) -> int:
    if options.debug:
        import traceback

        traceback.print_exc()
    print(f"error: {message}" if exit_code != INTERRUPTED else message, file=sys.stderr)
    return exit_code


_OR_A_FILE = "the bundle folder, which holds manifest.json, or the ONNX file of any classifier"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="Measure, inspect and run an edgefold bundle on this device.",
        epilog="example:\n  python -m runtime bench bundle --threads 4 --output bench.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="{bench,accuracy,inspect,classify,ops,doctor}", required=True)
    _add_bench(verbs)
    _add_accuracy(verbs)
    _add_inspect(verbs)
    _add_classify(verbs)
    _add_ops(verbs)
    _add_doctor(verbs)
    return parser


def _add_bench(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        bench,
        "Measure latency: percentiles with their bounds, throughput, cold start, and the machine's state.",
        "python -m runtime bench bundle --threads 4 --batch 1 --output bench.json\n"
        "  python -m runtime bench mine.onnx --shape input=1x3x224x224",
        target=_OR_A_FILE,
    )
    _add_engine_options(verb, batch=None, several=True)
    verb.add_argument(
        "--scenario",
        choices=("single", "offline", "server"),
        default="single",
        help="single: latency of one call after the other (default); offline: rows a second in batches, by default the "
        "largest verified one; server: the largest rate of random arrivals whose latency stays in --bound-ms",
    )
    verb.add_argument("--bound-ms", type=_above_zero, metavar="MS", help="of a server: latency, queue included")
    verb.add_argument(
        "--percentile", type=_percentile, metavar="P", help="of a server: of the queries in the bound (default: 99)"
    )
    verb.add_argument(
        "--data", type=Path, metavar="ROWS.npz", help="inputs, labels, row_ids to measure with (default: samples)"
    )
    verb.add_argument("--quick", action="store_true", help="measure for 3 s and not 10 s; the result says so")
    verb.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="fresh processes that share the measuring (default: 5, quick: 1)",
    )
    loadgen = "under MLCommons LoadGen, as a cross-check of this program's own loop (pip install mlcommons-loadgen)"
    verb.add_argument("--loadgen", action="store_true", help=loadgen)
    verb.add_argument("--seconds", type=_above_zero, metavar="S", help="measure for at least S (default: 10, quick: 3)")
    verb.add_argument("--calls", type=_positive, metavar="N", help="measure at least N calls (default: 662)")
    verb.add_argument("--power-mode", metavar="NAME", help="refuse a Jetson that is in another one (nvpmodel -q)")
    verb.add_argument("--cuda-graph", action="store_true", help="of a TensorRT engine: launch it as one CUDA graph")
    verb.add_argument(
        "--without-copies", action="store_true", help="of a TensorRT engine: do not time copies from and to the host"
    )
    _add_output_options(verb, "bench.json")


def _add_accuracy(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        accuracy,
        "Measure accuracy on labelled rows, with its 95 % interval, confusions, and every prediction.",
        "python -m runtime accuracy bundle --data rows.npz --output accuracy.json",
        target=_OR_A_FILE,
    )
    _add_engine_options(verb, batch=256)
    verb.add_argument(
        "--data",
        type=Path,
        metavar="ROWS.npz",
        help="inputs as the model takes them, labels int64, row_ids int64 (default: the bundle's samples)",
    )
    verb.add_argument("--limit", type=_positive, metavar="N", help="use the first N rows only")
    verb.add_argument(
        "--reference",
        type=Path,
        metavar="ACCURACY.json",
        help="count agreement with these earlier predictions (default for samples: the exported model's own)",
    )
    _add_output_options(verb, "accuracy.json")


def _add_inspect(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        inspect,
        "Check a bundle, an .onnx file, an engine or a stage's folder, and show what it is and what made it.",
        "python -m runtime inspect bundle/model.int8.onnx",
    )
    _add_output_options(verb, None)


def _add_classify(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        classify,
        "Classify texts, or lines of a table: the class of each and its probability.",
        'python -m runtime classify bundle "a moving film" "not for me"\n'
        "  python -m runtime classify bundle --json - < lines.txt\n"
        "  python -m runtime classify bundle - < rows.tsv",
    )
    verb.add_argument(
        "texts", nargs="+", metavar="TEXT", help="a text or a line of fields, or - for one on each line of stdin"
    )
    _add_format_and_threads(verb)
    _add_output_options(verb, None)


def _add_ops(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        ops,
        "Load the custom operators of packed binary models, and show their library and instruction set.",
        "python -m runtime ops\n  EDGEFOLD_ISA=portable python -m runtime ops",
        takes_bundle=False,
    )
    _add_output_options(verb, None)


def _add_doctor(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        doctor,
        "Show what this device can run, what is missing and what installs it, and which formats are too new for it.",
        "python -m runtime doctor\n  python -m runtime doctor --bundle bundle",
        takes_bundle=False,
    )
    verb.add_argument("--bundle", type=Path, metavar="BUNDLE", help="a bundle folder, whose formats are looked at")
    verb.add_argument("--format", action="append", help="one of these formats alone; may be repeated")
    _add_output_options(verb, "doctor.json")


def _add_verb(
    verbs: Any,
    function: Callable[[argparse.Namespace], None],
    sentence: str,
    example: str,
    *,
    takes_bundle: bool = True,
    target: str = "the bundle folder: it holds manifest.json",
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        function.__name__,
        help=sentence.replace("%", "%%"),  # argparse formats it, but not the description
        description=sentence,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(verb=function)
    if takes_bundle:
        verb.add_argument("bundle", type=Path, metavar="BUNDLE", help=target)
    return verb


def _add_format_and_threads(verb: argparse.ArgumentParser, *, several: bool = False) -> None:
    form = f"form of the model to run, or best for the fastest that runs here (default: {DEFAULT_FORMAT})"
    if several:
        verb.add_argument("--format", action="append", help=f"{form}; several are measured in turn, process by process")
    else:
        verb.add_argument("--format", help=form)
    verb.add_argument(
        "--threads",
        type=_positive,
        default=1,
        metavar="N",
        help="threads of the engine (default: %(default)s)",
    )
    # Names are checked where they are used (runtime.runners.choice), so that help needs no numpy.
    verb.add_argument(
        "--engine", metavar="NAME", help="onnxruntime or openvino, in the place of the format's own engine"
    )
    verb.add_argument(
        "--provider",
        metavar="NAME",
        help="what ONNX Runtime runs the model on: cpu (default), cuda, tensorrt, nv-tensorrt-rtx, openvino, xnnpack, "
        "coreml or qnn; refused where it would fall back to the CPU",
    )
    verb.add_argument("--precision", metavar="NAME", help="what OpenVINO computes in: fp32 (default) or bf16")


def _add_engine_options(verb: argparse.ArgumentParser, *, batch: int | None, several: bool = False) -> None:
    _add_format_and_threads(verb, several=several)
    verb.add_argument(
        "--shape",
        action="append",
        metavar="NAME=1x3x224x224",
        help="of an ONNX file: sizes that it leaves open, of an input or output by name; may be repeated",
    )
    verb.add_argument(
        "--max-size",
        type=_positive,
        default=2048,
        metavar="MIB",
        help="of an ONNX file: the largest that is read (default: %(default)s, the most that ONNX can hold)",
    )
    verb.add_argument(
        "--batch", type=_positive, default=batch, metavar="N", help=f"rows per call (default: {batch or 1})"
    )


def _add_output_options(verb: argparse.ArgumentParser, file: str | None) -> None:
    if file is not None:
        verb.add_argument("--output", type=Path, metavar="FILE", help=f"also write the result here, as {file}")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _percentile(text: str) -> str:
    """Check a percentile; it stays text, which is exact."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 50 <= value <= 99.99:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentile from 50 to 99.99")
    return text


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
