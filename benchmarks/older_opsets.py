"""Every family of models in every form and an older opset, in this onnxruntime and in older ones.

    python benchmarks/older_opsets.py [--python PATH ...] [--only KIND ...] [--output FILE.json]

The models are the first of each family of tests/compress/models/test_every_model_exports.py: random weights with
statistics of their own, on 256 random inputs. What is compared is the logits of the file of the older opset with those
of the same form's file of opset 20 in this onnxruntime: the largest error over their standard deviation, and the share
of equal classes. --python: interpreters with numpy and another onnxruntime, each of which gets the opset that
`edgefold doctor` would offer it, with the session's options that the runtime sets.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from model_table import tests

from compress.models import ModelSpec
from export.calibration import outputs_of
from export.layers import binary_layers
from export.older_opset import at_opset
from export.opsets import LEAST_OPSET
from export.parity import GATES
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.to_packed import packed_from_onnx
from export.to_portable import portable_from_onnx
from runtime.custom_ops import library_path

ROWS, CALIBRATION = 256, 64
OPSETS = (LEAST_OPSET, 15, 17, 19)

# Logits of each file below a folder whose opset is the one for this engine, or why there are none.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime
from runtime.onnx_support import READS, crashes_on, lays_out_wrongly
version, levels = onnxruntime.__version__, onnxruntime.GraphOptimizationLevel
reads = READS.get(tuple(map(int, version.split(".")[:2])))
opset = sys.argv[3] if len(sys.argv) > 3 else min(17, reads.opset)
errors, logits = {}, {}
for path in sorted(Path(sys.argv[1]).glob(f"*.{opset}.onnx")):
    name = path.name.removesuffix(f".{opset}.onnx")
    family, form = name.split(".")
    if crashes_on(version, form):
        errors[name] = "crashes"
        continue
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if family.startswith("binary"):  # factors that are folded into weights round otherwise, and signs turn over
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    elif lays_out_wrongly(version):
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    try:
        if form == "packed":
            options.register_custom_ops_library((path.parent / "operators").read_text())
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        logits[name] = session.run(["logits"], {"input": np.load(path.parent / f"{family}.rows.npy")})[0]
    except Exception as error:
        errors[name] = " ".join(str(error).split())[-200:]
np.savez(sys.argv[2], **logits)
print(json.dumps({"version": version, "opset": opset, "errors": errors}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="with another onnxruntime each")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="these families")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = list(_write(Path(folder), options.only))
        reference, _ = _run(sys.executable, Path(folder), ("20",))
        runs = [(sys.executable, (str(opset),)) for opset in OPSETS] + [(python, ()) for python in options.python]
        rows: list[dict[str, Any]] = []
        for python, opset in runs:
            logits, said = _run(python, Path(folder), opset)
            rows += _compared(said, logits, reference, names)
            for row in rows[-len(_forms(names)) :]:
                print(in_words(row), flush=True)
    if options.output:
        command = " ".join(["python", *sys.argv])
        options.output.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    return 0


def _write(folder: Path, only: list[str] | None) -> Iterator[str]:
    """Write every form of every family in opset 20 and in the older ones; yield their names, `family.form`."""
    cases = tests("test_every_model_exports")
    (folder / "operators").write_text(str(library_path()))
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as encoder:
        cases.tiny_encoders.write(Path(encoder))
        for case in cases.CASES:
            spec = case.spec if isinstance(case.spec, ModelSpec) else case.spec(encoder)
            if spec.kind in seen or (only and spec.kind not in only):
                continue
            seen.add(spec.kind)
            exported = cases.export(case, encoder)
            inputs = cases.inputs_of(case.signature, ROWS + CALIBRATION, seed=9)
            np.save(folder / f"{spec.kind}.rows.npy", inputs[:ROWS])
            for form, model in _made(exported, inputs[ROWS:]).items():
                (folder / f"{spec.kind}.{form}.20.onnx").write_bytes(model)
                for opset in sorted({*OPSETS, 14, 16, 18}):
                    (folder / f"{spec.kind}.{form}.{opset}.onnx").write_bytes(at_opset(model, opset))
                yield f"{spec.kind}.{form}"


def _made(exported: Any, calibration: np.ndarray) -> dict[str, bytes]:
    """Return the forms of a model: packed of a binary one, half precision and INT8 of all others."""
    model, layers = exported.model, binary_layers(exported.graph)
    if layers:
        return {"onnx": portable_from_onnx(model, layers=layers), "packed": packed_from_onnx(model, layers=layers)}
    labels = outputs_of(model, ["logits"], calibration)[0].argmax(axis=1)
    made = {"onnx": model, "fp16": fp16_from_onnx(model)}
    for name, form in (("int8", "signed"), ("int8_cpu", "cpu")):
        made[name] = int8_from_onnx(
            model, calibration, calibration, labels, gate=GATES["int8"], method="minmax", form=form  # type: ignore[arg-type]
        ).model  # fmt: skip
    return made


def _run(python: str, folder: Path, opset: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    output = folder / "logits.npz"
    done = subprocess.run([python, "-c", CHILD, folder, output, *opset], capture_output=True, text=True, check=True)
    with np.load(output) as file:
        return dict(file), json.loads(done.stdout.splitlines()[-1])


def _compared(
    said: dict[str, Any], logits: dict[str, np.ndarray], reference: dict[str, np.ndarray], names: list[str]
) -> list[dict[str, Any]]:
    rows = []
    for form in _forms(names):
        own = [name for name in names if name.endswith(f".{form}")]
        there = [name for name in own if name in logits]
        errors = {each: float(np.abs(logits[each] - reference[each]).max() / reference[each].std()) for each in there}
        equal = [float((logits[each].argmax(1) == reference[each].argmax(1)).mean()) for each in there]
        rows.append({
            "onnxruntime": said["version"], "opset": int(said["opset"]), "form": form, "models": len(own),
            "run": len(there), "max_error_over_std": max(errors.values(), default=None),
            "of": max(errors, key=errors.__getitem__, default=None), "least_equal_classes": min(equal, default=None),
            "failed": {name: said["errors"][name] for name in own if name in said["errors"]},
        })  # fmt: skip
    return rows


def _forms(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[1] for name in sorted(names)))


def in_words(row: dict[str, Any]) -> str:
    start = (
        f"onnxruntime {row['onnxruntime']}, opset {row['opset']}, {row['form']}: {row['run']} of {row['models']} run"
    )
    if row["run"]:
        start += (
            f", {row['max_error_over_std']:.1e} at most ({row['of']}), {row['least_equal_classes']:.1%} equal classes"
        )
    return "; ".join([start, *dict.fromkeys(row["failed"].values())])


if __name__ == "__main__":
    sys.exit(main())
