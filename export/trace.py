"""An ONNX model run with all of its values as outputs, exactly as its nodes say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from export.alignment import Value
from runtime.errors import ExportError

_ERRORS_ONLY = 3
_BATCH = 4  # rows at a time: all values of both models are held at once


class Trace:
    """A model with one input. live: names of the values that the input decides, in topological order.

    constants: all other values, weights as a node reads them included; known once `run` was called.
    library: of custom operators, where the model needs them.
    Raises ExportError where it is not ONNX or the engine does not take it.
    """

    def __init__(self, model: bytes, name: str, *, library: Path | None = None) -> None:
        self.name = name
        self.model = _parsed(model, name)
        self.graph = self.model.graph
        self._library = library
        self.input = _argument(self.graph, name).name
        self.outputs = tuple(each.name for each in self.graph.output)
        self.producer = {value: node for node in self.graph.node for value in node.output if value}
        self.position = {value: i for i, node in enumerate(self.graph.node) for value in node.output if value}
        decided = {self.input}
        for node in self.graph.node:
            if not decided.isdisjoint(node.input):
                decided.update(filter(None, node.output))
        self.live = tuple(value for value in self.producer if value in decided)
        self.constants = {each.name: numpy_helper.to_array(each) for each in self.graph.initializer}
        self._plain = self._session(model, optimised=True)
        watched = onnx.ModelProto()
        watched.CopyFrom(self.model)
        watched.graph.output.extend(
            onnx.ValueInfoProto(name=value) for value in self.producer if value not in self.outputs
        )
        self._watched = self._session(watched.SerializeToString(), optimised=False)
        (self.argument,) = self._plain.get_inputs()

    def batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Cut `rows` into batches that the model takes; of a fixed batch what is left over is left out."""
        fixed = self.argument.shape[0] if self.argument.shape and isinstance(self.argument.shape[0], int) else None
        size = fixed or _BATCH
        for first in range(0, len(rows), size):
            if fixed is None or first + size <= len(rows):
                yield rows[first : first + size]

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every live value on `batch` (N, *shape)."""
        names = [each.name for each in self._watched.get_outputs()]
        found = dict(zip(names, self._call(self._watched, names, batch), strict=True))
        live = set(self.live)
        self.constants.update({name: value for name, value in found.items() if name not in live})
        return {name: np.asarray(found[name]) for name in self.live}

    def as_deployed(self, rows: np.ndarray) -> np.ndarray:
        """Return the first output of `rows` with everything that the engine does to make it fast."""
        parts = [self._call(self._plain, [self.outputs[0]], batch)[0] for batch in self.batches(rows)]
        if not parts:
            raise ExportError(f"{self.name}: {len(rows)} rows do not make one of its batches, {self.argument.shape}")
        return np.concatenate(parts)

    def values(self, found: dict[str, np.ndarray]) -> list[Value]:
        return [
            Value(name, self.producer[name].op_type, found[name].shape, found[name].dtype.kind == "f")
            for name in self.live
        ]

    def live_inputs(self, value: str) -> list[str]:
        """Return what the node of `value` reads, constants apart."""
        known = {*self.live, self.input}
        return [name for name in dict.fromkeys(self.producer[value].input) if name in known]

    def _call(self, session: Any, names: list[str], batch: np.ndarray) -> list[np.ndarray]:
        try:
            return session.run(names, {self.input: batch})
        except Exception as error:  # its exception types are private and differ between versions
            raise ExportError(
                f"{self.name}: does not run on {batch.dtype} {list(batch.shape)}: {_first_line(error)}"
            ) from error

    def _session(self, data: bytes, *, optimised: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        try:
            return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise ExportError(f"{self.name}: the engine does not take it: {_first_line(error)}") from error


def argument_of(model: bytes, name: str) -> tuple[str, tuple[int | str, ...]]:
    """Return data type and shape, without the batch, of a model's one input. Raises ExportError as `Trace` does."""
    graph = _parsed(model, name).graph
    argument = _argument(graph, name)
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(argument.type.tensor_type.elem_type)).name
    axes = argument.type.tensor_type.shape.dim[1:]
    return kind, tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes)


def _argument(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    constants = {each.name for each in graph.initializer}
    given = [each for each in graph.input if each.name not in constants]
    if len(given) != 1:
        raise ExportError(f"{name}: has the inputs {', '.join(each.name for each in given) or 'none'}; expected one")
    return given[0]


def _parsed(model: bytes, name: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's own type, which differs between its implementations
        raise ExportError(f"{name}: not a whole ONNX model ({error})") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
