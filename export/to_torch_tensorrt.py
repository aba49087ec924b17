"""A deployable graph by torch-tensorrt: from torch to TensorRT without ONNX, what it cannot convert staying in torch.

The result is an ExportedProgram, which needs torch and torch-tensorrt where it runs. Loading one may run what it
brings, so it lies beside a bundle and never in it.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from export.graph import DeployableGraph, InputSignature
from export.layers import with_exported_layers
from export.parity import Comparison, Gate, compare, worst
from runtime.engine_build import profile_sizes
from runtime.errors import ExportError, GateError, MissingExtraError

MODULE = "torch_tensorrt"


def torch_tensorrt_module() -> ModuleType:
    """Return torch-tensorrt. Raises ExportError where there is no GPU, MissingExtraError where it does not import."""
    if not torch.cuda.is_available():
        raise ExportError("torch-tensorrt builds on the GPU that it builds for, and torch finds none here")
    try:
        return importlib.import_module(MODULE)
    except Exception as error:  # where its libraries are missing it raises a bare Exception
        reason = " ".join(str(error).split())
        remedy = "pip install the torch-tensorrt of the same version as torch"
        raise MissingExtraError(f"torch-tensorrt does not import: {reason}", remedy) from error


def program_from_graph(
    graph: DeployableGraph,
    signature: InputSignature,
    path: Path,
    *,
    batch_sizes: Sequence[int],
    rows: np.ndarray,
    gate: Gate,
    workspace_mib: int | None = None,
) -> Comparison:
    """Compile `graph` for the GPU at hand and save it at `path`; return how it compares with `graph` itself.

    rows (N, *shape): inputs to compare on, at each of `batch_sizes`. Raises GateError, saving nothing, where the logits
    are not those of `graph` within `gate`; ExportError, MissingExtraError.
    """
    trt = torch_tensorrt_module()
    least, best, most = profile_sizes(batch_sizes)
    dtype = getattr(torch, signature.dtype)
    if signature.dynamic_length:
        length = signature.shape[0]
        ends: dict[str, Any] = {
            "min_shape": (least, 1), "opt_shape": (best, length), "max_shape": (most, length),
        }  # fmt: skip
    else:
        sizes = {"min_shape": least, "opt_shape": best, "max_shape": most}
        ends = {name: (size, *signature.shape) for name, size in sizes.items()}
    inputs = [trt.Input(**ends, dtype=dtype)]
    graph = graph.eval()
    with torch.no_grad():
        expected = _logits(graph(torch.from_numpy(rows)))
        try:
            compiled = trt.compile(
                with_exported_layers(graph).cuda(),
                ir="dynamo",
                arg_inputs=inputs,
                disable_tf32=True,
                min_block_size=1,
                **({"workspace_size": workspace_mib << 20} if workspace_mib else {}),
            )
        except Exception as error:  # of its compiler, of TensorRT, of torch.export
            raise ExportError(f"torch-tensorrt cannot compile the student: {' '.join(str(error).split())}") from error
        finally:
            graph.cpu()
        compared = worst([_compared(compiled, rows, expected, size, gate) for size in (least, best, most)])
        if not compared.passed:
            raise GateError(f"the student compiled by torch-tensorrt is another model: {'; '.join(compared.reasons)}")
        _save(trt, compiled, path, inputs)
    return compared


def _compared(compiled: Any, rows: np.ndarray, expected: np.ndarray, size: int, gate: Gate) -> Comparison:
    count = max(1, len(rows) // size)
    cuts = np.resize(rows, (count * size, *rows.shape[1:])).reshape(count, size, *rows.shape[1:])
    logits = np.concatenate([_logits(compiled(torch.from_numpy(cut).cuda())) for cut in cuts])
    reference = np.resize(expected, logits.shape)
    return compare(reference, logits, reference.argmax(axis=1), gate)


def _logits(outputs: Any) -> np.ndarray:
    return (outputs[0] if isinstance(outputs, tuple) else outputs).float().cpu().numpy()


def _save(trt: ModuleType, compiled: Any, path: Path, inputs: list[Any]) -> None:
    """Save beside `path`, then take its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        trt.save(compiled, str(beside), output_format="exported_program", arg_inputs=inputs)
        os.replace(beside, path)
