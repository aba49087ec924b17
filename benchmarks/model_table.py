"""Every model beside what is printed for it, and, with --exports, what its files weigh and how near they stay.

    python benchmarks/model_table.py [--exports] [--output FILE.json]

The models and the printed figures are those of tests/compress/models; parity is the largest logit error over the
standard deviation of the logits, at batches of 1, 8 and 64; the engine is TensorRT-RTX's for SM86, built and not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from compress.models import MODELS, parameter_count
from runtime.engine_build import engine_from_onnx

ROOT = Path(__file__).parents[1] / "tests"
TESTS = ROOT / "compress" / "models"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exports", action="store_true", help="export and build them, too: minutes")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    record: dict[str, Any] = {"command": " ".join(sys.argv), "parameters": []}
    print(f"{'model':<118} {'outputs':>7} {'printed':>11} {'here':>11}")
    for model, outputs, printed, here in counts():
        print(f"{model:<118} {outputs:>7} {printed:>11} {here:>11,}")
        record["parameters"].append({"model": model, "outputs": outputs, "printed": printed, "here": here})
    if options.exports:
        record["exports"] = []
        print(f"\n{'model':<28} {'parameters':>11} {'ONNX MB':>8} {'parity':>8} {'engine MB':>9} {'build s':>8}")
        for row in exports():
            record["exports"].append(row)
            print(
                f"{row['model']:<28} {row['parameters']:>11,} {row['onnx_mb']:>8.2f} {row['parity']:>8.1e} "
                f"{row['engine_mb']:>9.2f} {row['build_s']:>8.2f}",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def counts() -> Iterator[tuple[str, int, str, int]]:
    """Yield (model, outputs, what is printed, parameters here)."""
    small, large = tests("test_papers"), tests("test_mobile_and_imagenet_models")
    for model, outputs, printed in small.PRINTED:
        yield written(model), outputs, f"{printed} M", small.count(model, outputs)
    for model, outputs, printed, _ in small.NOT_MET:
        yield f"not met: {written(model)}", outputs, f"{printed} M", small.count(model, outputs)
    for model, exact, _ in small.CRD:
        yield written(model), 100, f"{exact:,}", small.count(model, 100)
    for kind, options, (outputs, side), printed in (*large.PRINTED, *large.PUBLISHED_CODE):
        here = parameter_count(MODELS[kind](**options), signature=large.signature_of(side), outputs=outputs)
        yield written({kind: options}), outputs, f"{printed} M" if isinstance(printed, str) else f"{printed:,}", here


def exports() -> Iterator[dict[str, Any]]:
    cases = tests("test_every_model_exports")
    with tempfile.TemporaryDirectory() as encoder:
        cases.tiny_encoders.write(Path(encoder))
        for case in cases.CASES:
            yield _exported(cases, case, encoder)


def _exported(cases: ModuleType, case: Any, encoder: str) -> dict[str, Any]:
    exported = cases.export(case, encoder)
    comparison = cases.parity(exported)
    started = time.perf_counter()
    engine = engine_from_onnx(
        exported.model,
        batch_sizes=cases.BATCH_SIZES,
        length=case.signature.shape[0] if case.signature.dynamic_length else None,
        compute_capability=cases.GPU,
        module="tensorrt_rtx",
    )
    return {
        "model": case.name,
        "parameters": sum(each.numel() for each in exported.graph.student.parameters()),
        "onnx_mb": len(exported.model) / 1e6,
        "parity": comparison.max_error_over_std,
        "passed": comparison.passed,
        "engine_mb": len(engine.plan) / 1e6,
        "build_s": time.perf_counter() - started,
    }


def written(model: Any) -> str:
    """Return a model as a recipe has it, on one line."""
    if isinstance(model, str):
        return model
    ((kind, options),) = model.items()
    text = ", ".join(f"{key}: {list(value) if isinstance(value, tuple) else value}" for key, value in options.items())
    return f"{kind}: {{{text}}}" if text else kind


def tests(name: str) -> ModuleType:
    """Return a module of the tests, where the tables stand."""
    sys.path.insert(0, str(ROOT / "support"))
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
