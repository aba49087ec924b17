"""`python -m runtime`: measures, inspects and runs a bundle on the device itself.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the work failed, 2 what was given
cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from runtime.arguments import ACCURACY_BATCH, choice_of, format_of, opened, parser
from runtime.errors import EdgefoldError, UsageError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # class names may hold what the console cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        VERBS[options.verb](options)
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
    from runtime.bench_verb import bench_documents, loadgen_document
    from runtime.files import check_output

    check_output(options.output)
    if options.loadgen:
        under_loadgen = loadgen_document(options, _progress)
        _finish(under_loadgen, lambda: display.loadgen_text(under_loadgen), options)
        return
    documents = bench_documents(options, _progress)
    document = documents[0] if len(documents) == 1 else {"kind": "benches", "results": documents}
    _finish(document, lambda: "\n\n".join(display.bench_text(each) for each in documents), options)


def accuracy(options: argparse.Namespace) -> None:
    from runtime import display
    from runtime.accuracy import evaluate, read_reference, reference_from_logits
    from runtime.files import check_output
    from runtime.rows import read_rows
    from runtime.runners import open_runner

    check_output(options.output)
    bundle = opened(options)
    if options.data is None and not bundle.samples_file:
        raise UsageError(
            f"{options.bundle}: a model without a bundle has no labelled rows",
            remedy="Give them: --data ROWS.npz with inputs, labels, row_ids (numpy.savez).",
        )
    rows = bundle.samples() if options.data is None else read_rows(options.data)
    rows = rows if options.limit is None else rows.first(options.limit)
    reference = reference_from_logits(rows) if options.reference is None else read_reference(options.reference)
    form, choice = format_of(bundle, options), choice_of(options)
    with open_runner(bundle, form, options.threads, choice, batch=options.batch, say=_progress) as runner:
        _note(runner.notes)
        result = evaluate(
            runner,
            rows,
            batch=options.batch or ACCURACY_BATCH,
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
    form, choice = format_of(bundle, options), choice_of(options)
    with open_runner(bundle, form, options.threads, choice, say=_progress) as runner:
        _note(runner.notes)
        classified = classify(runner, texts)
    _finish(document_of(runner, classified), lambda: display.classified_text(classified), options)


def ops(options: argparse.Namespace) -> None:
    from runtime.custom_ops import instruction_set, library_path

    document = {"kind": "ops", "library": str(library_path()), "instruction_set": instruction_set()}
    _finish(document, lambda: f"{document['library']}\n{document['instruction_set']}", options)


def doctor(options: argparse.Namespace) -> None:
    from runtime.doctor import document_of, examine, findings_text

    findings = examine(options.bundle, tuple(options.format or ()), options.engine, options.provider)
    _finish(document_of(findings), lambda: findings_text(findings), options)


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


VERBS = {verb.__name__: verb for verb in (bench, accuracy, inspect, classify, ops, doctor)}

if __name__ == "__main__":
    sys.exit(main())
