"""A deployable graph as one ONNX file: weights inside, dynamic batch, the same bytes on every run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.graph import INPUT_NAME, DeployableGraph, InputSignature
from export.layers import with_exported_layers
from export.opsets import OPSET
from runtime.errors import ExportError
from runtime.files import write_atomically

MAX_IR_VERSION = 10
BATCH_AXIS = "batch"
LENGTH_AXIS = "length"
EXAMPLE_BATCH = 2  # a batch of 1 may be taken for a constant by what traces it

# ReduceLogSumExp overflows in half precision where a parser expands it without the maximum (`export.fold`).
REFUSED_OPERATORS = frozenset({"ReduceLogSumExp"})

_MEMBERS_TO_CLEAR = ("doc_string", "metadata_props")


def onnx_from_graph(graph: DeployableGraph, signature: InputSignature, *, metadata: Mapping[str, str]) -> bytes:
    """Return `graph` as a serialised, fully checked ONNX model.

    Input `input`: (batch, *signature.shape), of the signature's dtype; (batch, length) where its length is dynamic.
    Outputs: `logits` float32 (batch, C) and, where the graph has it, `subclass_probabilities` float32 (batch, C*S).
    `metadata` becomes the model's metadata_props, sorted by key. The graph is exported in evaluation mode and its modes
    are put back; its layers that have `for_export` are replaced in a copy (`export.layers`). Raises ExportError with
    the cause in one line.
    """
    _require_text(metadata)
    example = torch.zeros(
        (EXAMPLE_BATCH, *signature.shape), dtype=getattr(torch, signature.dtype), device=_device_of(graph)
    )
    with _evaluation_mode(graph), torch.no_grad():
        _run_once(graph, example)
        model = _traced(with_exported_layers(graph), graph.output_widths, example, signature)
    _clear_traces(model)
    _identify(model, metadata)
    _check(model, graph, signature)
    return bytes(model.SerializeToString(deterministic=True))


def write_onnx(path: Path, graph: DeployableGraph, signature: InputSignature, *, metadata: Mapping[str, str]) -> None:
    """Write `onnx_from_graph` to `path`, whole or not at all."""
    write_atomically(path, onnx_from_graph(graph, signature, metadata=metadata))


def _run_once(graph: DeployableGraph, example: Tensor) -> None:
    """Fail here, in plain PyTorch, rather than inside a tracer that wraps the error three times."""
    try:
        graph(example)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the student does not run on an input of shape {tuple(example.shape)}: {_one_line(error)}",
            remedy="Check that the student was built for this input signature.",
        ) from error


def _traced(graph: nn.Module, outputs: Iterable[str], example: Tensor, signature: InputSignature) -> onnx.ModelProto:
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes=(_dynamic_axes(signature),),
                input_names=[INPUT_NAME],
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
            if program is None:
                raise ExportError("the exporter returned nothing")
            return program.model_proto
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the graph cannot be written as ONNX: {_one_line(_root_cause(error))}",
            remedy="Use operations that torch.onnx.export supports; no Python branch may depend on a tensor.",
        ) from error


def _dynamic_axes(signature: InputSignature) -> dict[int, Any]:
    axes: dict[int, Any] = {0: torch.export.Dim(BATCH_AXIS)}
    return axes | {1: torch.export.Dim(LENGTH_AXIS, max=signature.shape[0])} if signature.dynamic_length else axes


def input_axes(signature: InputSignature) -> tuple[int | str, ...]:
    """Return the axes of an exported graph's input as the file has them: sizes, and names of dynamic ones."""
    return (BATCH_AXIS, *((LENGTH_AXIS,) if signature.dynamic_length else signature.shape))


@contextlib.contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule; afterwards each has the mode that it had."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, warnings and log lines off the terminal; failures stay exceptions."""
    disabled = logging.root.manager.disable
    # torch's log handlers hold the stream they were made with, so redirecting alone does not reach them.
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _clear_traces(message: Any) -> None:
    """Clear documentation and metadata of a protobuf message and of all below it.

    The exporter puts stack traces there: absolute source paths, which would leak and differ by machine.
    """
    for member in _MEMBERS_TO_CLEAR:
        if member in message.DESCRIPTOR.fields_by_name:
            message.ClearField(member)
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for each in [value] if hasattr(value, "ListFields") else value:
                _clear_traces(each)


def _identify(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    model.producer_name = "edgefold"
    model.producer_version = _version()
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def _check(model: onnx.ModelProto, graph: DeployableGraph, signature: InputSignature) -> None:
    """Raise ExportError unless the model is valid and is what was asked for."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        raise ExportError(f"the exported graph is not valid ONNX: {_one_line(error)}") from error
    opset = {each.domain: each.version for each in model.opset_import}.get("")
    if opset != OPSET or model.ir_version > MAX_IR_VERSION:
        raise ExportError(
            f"the exporter wrote opset {opset}, IR {model.ir_version}; expected opset {OPSET}, IR <= {MAX_IR_VERSION}",
            remedy="Install the versions of torch, onnx and onnxscript in constraints.txt.",
        )
    if refused := sorted({node.op_type for node in _all_nodes(model)} & REFUSED_OPERATORS):
        raise ExportError(
            f"the graph contains {', '.join(refused)}, which overflows in half-precision engines",
            remedy="Write it as max, subtract, exp, sum, log, add, as export.fold does.",
        )
    came = {each.name: axes_of(each) for each in (*model.graph.input, *model.graph.output)}
    expected = {INPUT_NAME: input_axes(signature)}
    expected |= {name: (BATCH_AXIS, width) for name, width in graph.output_widths.items()}
    if came != expected:
        raise ExportError(
            f"the exported graph has inputs and outputs {came}; expected {expected}",
            remedy="Something in the model fixes a shape while it is traced: look for int(...) or len(...).",
        )


def axes_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """The sizes of a tensor's axes; a dynamic axis is its name."""
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                pending.extend(subgraph.node)


def _require_text(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ExportError(f"metadata {key!r} is {value!r}; expected text, for instance JSON")


def _device_of(module: nn.Module) -> torch.device:
    tensor = next((each for each in (*module.parameters(), *module.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _version() -> str:
    try:
        return importlib.metadata.version("edgefold")
    except importlib.metadata.PackageNotFoundError:  # used from a checkout that was never installed
        return ""
