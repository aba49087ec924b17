"""The final layers of an engine with their data types, of what TensorRT says while it builds or of the engine itself.

TensorRT-RTX logs them, so that they are known without the GPU; TensorRT has an inspector, which needs it and has it. By
them a test can tell real INT8 from values that are rounded to INT8 and multiplied as floats.
"""

from __future__ import annotations

import json
import re
from typing import Any

from runtime.engine_file import Layer

HEADING = "Layers:"  # begins the message of the log that lists them

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$")
_LISTS = ("Inputs", "Constants", "Outputs")
_DATATYPE = re.compile(r"Datatype: ([^,}]*)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]*)")


def layers_from_log(message: str) -> tuple[Layer, ...]:
    """Return the layers of a message that begins with `HEADING`; lines that are no layers are left out."""
    found = []
    for line in message.splitlines():
        match = _LAYER.match(line.strip())
        if match is None:
            continue
        rest = match["rest"]
        inputs, constants, outputs = (_DATATYPE.findall(_list_of(rest, key)) for key in _LISTS)
        types = tuple(inputs), tuple(constants), tuple(outputs)
        found.append(Layer(match["name"], match["kind"], *types, _nodes(rest)))
    return tuple(found)


def _list_of(text: str, key: str) -> str:
    """Return what stands in the brackets of `key: [ ... ]`, which may hold brackets itself."""
    start = text.find(f"{key}: [")
    if start < 0:
        return ""
    depth, begin = 0, start + len(key) + 2
    for at in range(begin, len(text)):
        depth += {"[": 1, "]": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin : at + 1]
    return text[begin:]


def layers_from_inspector(text: str) -> tuple[Layer, ...]:
    """Return the layers of what an engine's inspector gives as JSON; of brief ones there are only names."""
    layers = []
    for each in json.loads(text).get("Layers", []):
        if isinstance(each, str):
            layers.append(Layer(each, "", (), (), (), ()))
            continue
        inputs, constants, outputs = (tuple(map(_datatype, each.get(key) or ())) for key in _LISTS)
        nodes = _nodes(str(each.get("Metadata", "")))
        layers.append(Layer(each.get("Name", ""), each.get("LayerType", ""), inputs, constants, outputs, nodes))
    return tuple(layers)


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_NODE.findall(metadata)))


def _datatype(tensor: Any) -> str:
    # Which of the two it has depends on the version.
    return str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
