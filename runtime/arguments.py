"""The command line of `python -m runtime`: its options, and what they say of a bundle and its engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UsageError

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.runners.choice import EngineChoice

DEFAULT_FORMAT = "onnx"
ACCURACY_BATCH = 256
_OR_A_FILE = "the bundle folder, which holds manifest.json, or the ONNX file of any classifier"


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line; `verb` of the options is the verb's name."""
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
        "bench",
        "Measure latency: percentiles with their bounds, throughput, cold start, and the machine's state.",
        "python -m runtime bench bundle --threads 4 --batch 1 --output bench.json\n"
        "  python -m runtime bench mine.onnx --shape input=1x3x224x224",
        target=_OR_A_FILE,
    )
    _add_engine_options(verb, usual_batch=1, several=True)
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
        "accuracy",
        "Measure accuracy on labelled rows, with its 95 % interval, confusions, and every prediction.",
        "python -m runtime accuracy bundle --data rows.npz --output accuracy.json",
        target=_OR_A_FILE,
    )
    _add_engine_options(verb, usual_batch=ACCURACY_BATCH)
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
        "inspect",
        "Check a bundle, an .onnx file, an engine or a stage's folder, and show what it is and what made it.",
        "python -m runtime inspect bundle/model.int8.onnx",
    )
    _add_output_options(verb, None)


def _add_classify(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        "classify",
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
        "ops",
        "Load the custom operators of packed binary models, and show their library and instruction set.",
        "python -m runtime ops\n  EDGEFOLD_ISA=portable python -m runtime ops",
        takes_bundle=False,
    )
    _add_output_options(verb, None)


def _add_doctor(verbs: Any) -> None:
    verb = _add_verb(
        verbs,
        "doctor",
        "Show what this device can run, what is missing and what installs it, and which formats are too new for it.",
        "python -m runtime doctor\n  python -m runtime doctor --bundle bundle",
        takes_bundle=False,
    )
    verb.add_argument("--bundle", type=Path, metavar="BUNDLE", help="a bundle folder, whose formats are looked at")
    verb.add_argument("--format", action="append", help="one of these formats alone; may be repeated")
    verb.add_argument("--engine", metavar="NAME", help="the engine that is to be used, which then has to be here")
    verb.add_argument("--provider", metavar="NAME", help="the provider of ONNX Runtime that is to be used, likewise")
    _add_output_options(verb, "doctor.json")


def _add_verb(
    verbs: Any,
    name: str,
    sentence: str,
    example: str,
    *,
    takes_bundle: bool = True,
    target: str = "the bundle folder: it holds manifest.json",
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=sentence.replace("%", "%%"),  # argparse formats it, but not the description
        description=sentence,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(verb=name)
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
        "--engine",
        metavar="NAME",
        help="onnxruntime, openvino, tensorrt or tensorrt_rtx, in the place of the format's own engine; of the last "
        "two an engine is built here and kept (tensorrt: the first of the two that can)",
    )
    verb.add_argument(
        "--provider",
        metavar="NAME",
        help="what ONNX Runtime runs the model on: cpu (default), cuda, tensorrt, nv-tensorrt-rtx, openvino, xnnpack, "
        "coreml or qnn; refused where it would fall back to the CPU",
    )
    verb.add_argument("--precision", metavar="NAME", help="what OpenVINO computes in: fp32 (default) or bf16")


def _add_engine_options(verb: argparse.ArgumentParser, *, usual_batch: int, several: bool = False) -> None:
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
    verb.add_argument("--batch", type=_positive, metavar="N", help=f"rows per call (default: {usual_batch})")


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


def opened(options: argparse.Namespace) -> Bundle:
    """Open a bundle's folder, or an ONNX file without one."""
    from runtime.bare_model import is_bare_model, open_model, shape_from_text
    from runtime.bundle import open_bundle

    if is_bare_model(options.bundle):
        shapes = dict(map(shape_from_text, options.shape or ()))
        return open_model(options.bundle, shapes, most_bytes=options.max_size << 20)
    if options.shape:
        raise UsageError(f"--shape is for an ONNX file; {options.bundle} says its shapes itself")
    return open_bundle(options.bundle)


def format_of(bundle: Bundle, options: argparse.Namespace) -> str:
    return str(options.format or default_format(bundle))


def default_format(bundle: Bundle) -> str:
    """Return what every bundle has, or the only format of a file."""
    return DEFAULT_FORMAT if bundle.samples_file else next(iter(bundle.formats))


def choice_of(options: argparse.Namespace) -> EngineChoice:
    from runtime.runners.choice import EngineChoice

    return EngineChoice(options.engine, options.provider, options.precision)


def gpu_options_of(options: argparse.Namespace) -> dict[str, bool]:
    """Return the options of a TensorRT engine that were given; none for the other engines."""
    given = {"copies": False} if options.without_copies else {}
    return {**given, "cuda_graph": True} if options.cuda_graph else given
