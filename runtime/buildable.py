"""Which ONNX models TensorRT is given: it would misread some, and of others it says little."""

from __future__ import annotations

from runtime.errors import ExportError
from runtime.onnx_file import onnx_header_from_bytes, operators_from_bytes

MOST_BYTES = 2**31 - 1  # what protobuf, and with it every parser, takes in one message

_STANDARD = ("", "ai.onnx")


def require_buildable(model: bytes, *, origin: str = "the model", most_bytes: int = MOST_BYTES) -> None:
    """Refuse what no TensorRT builds, or what it would build into something else, before one sees it.

    Raises BundleError where the model is not whole, ExportError for the others.
    """
    if len(model) > most_bytes:
        raise ExportError(
            f"{origin} has {len(model):,} bytes; expected at most {most_bytes:,}",
            remedy="A student is smaller: see whether this is the right file.",
        )
    if outside := onnx_header_from_bytes(model, origin).external_data:
        raise ExportError(
            f"{origin} keeps weights in {', '.join(outside)}; expected them inside the file",
            remedy="Save the model again without external data.",
        )
    operators = operators_from_bytes(model, origin)
    foreign = [domain for domain in operators.domains if domain not in _STANDARD]
    if "edgefold" in foreign:
        raise ExportError(
            f"{origin} has edgefold's packed operators, which are no GPU's; TensorRT builds standard ones",
            remedy="Run the packed file with ONNX Runtime (--format packed).",
        )
    if foreign:
        kinds = ", ".join(dict.fromkeys(each.kind for each in operators.nodes if each.domain in foreign))
        raise ExportError(
            f"{origin} has operators of {', '.join(map(repr, foreign))} ({kinds}); TensorRT builds standard ones",
            remedy="Export the model again with the operators of ONNX alone.",
        )
    if unsigned := operators.unsigned_quantizers:
        raise ExportError(
            f"{origin} quantises to uint8 in {len(unsigned)} places, first in {unsigned[0]}; TensorRT reads it as int8 "
            "and cuts off everything above 127",
            remedy="Quantise to int8 with zero point 0, as the format int8 does.",
        )
