"""What was inspected as short text for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.display import bundle_facts, clipped, pairs
from runtime.inspection import RECIPE, Inspected, InspectedModel

_OPERATORS = 8


def inspected_text(found: Inspected) -> str:
    if found.stage is not None:
        return _stage_text(found.stage)
    lines: list[str] = []
    if found.bundle is not None:
        lines += pairs(bundle_facts(found.bundle))
        for name, entry in found.bundle.formats.items():
            lines += ["", f"{name}: {entry.file}, {entry.precision}, {entry.size_bytes:,} bytes"]
            if name in found.models:
                lines += _indented(_model_facts(found.models[name]))
            if name in found.engines:
                lines += _indented(_engine_facts(found.engines[name]))
        for request in found.bundle.missing_engines:
            lines += ["", f"not built: {request.in_words()} (on the device: edgefold export engine {found.path})"]
    else:
        if found.home is not None:
            lines += pairs(
                {
                    "bundle": f"{found.home.name} (stage {found.home.stage})",
                    "format": found.format or "none of the bundle's",
                    "checksum of the bundle": found.home.checksum,
                    **{name.replace("_", " "): f"{value:g}" for name, value in found.home.metrics.items()},
                }
            )
        if found.engine is not None:
            lines += pairs(_engine_facts(found.engine))
        for name, model in found.models.items():
            lines += ["", f"{name}: {model.path.name}, {model.size_bytes:,} bytes", *_indented(_model_facts(model))]
    if found.recipe:
        lines += ["", "recipe:", *(f"  {line}" for line in found.recipe.rstrip().splitlines())]
    return "\n".join(lines).lstrip("\n")


def _model_facts(model: InspectedModel) -> dict[str, str]:
    summary, header = model.summary, model.header
    often = list(summary.operators.items())
    more = f" and {len(often) - _OPERATORS} more kinds" if len(often) > _OPERATORS else ""
    return {
        "sha256": model.sha256,
        "IR version": str(header.ir_version),
        "opset": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in header.opsets.items()),
        **{f"input {each.name}": each.type_in_words() for each in summary.inputs},
        **{f"output {each.name}": each.type_in_words() for each in summary.outputs},
        "operators": f"{sum(summary.operators.values())}: "
        + ", ".join(f"{count} {kind}" for kind, count in often[:_OPERATORS])
        + more,
        "weights": ", ".join(f"{count:,} {dtype}" for dtype, count in summary.weights.items()) or "none",
        **{key: clipped(value) for key, value in header.metadata.items() if key != RECIPE},
    }


def _engine_facts(engine: Mapping[str, Any]) -> dict[str, str]:
    layers = [each for each in engine.get("layers", []) if isinstance(each, dict)]
    kinds = Counter(str(each.get("kind", "")) for each in layers)
    facts = {
        "engine": f"{engine.get('module', '')} {engine.get('version', '')}".strip(),
        "built for": str(engine.get("compute_capability") or engine.get("device") or "every GPU that it serves"),
        "sha256": str(engine["plan_sha256"]),
        "made of": f"{engine.get('onnx_file', '')} (sha256 {engine.get('onnx_sha256', '')})",
    }
    for what in ("inputs", "outputs"):
        for each in engine.get(what, []):
            facts[f"{what[:-1]} {each['name']}"] = f"{each['dtype']} {_axes(each['shape'])}"
    for number, profile in enumerate(engine.get("profiles", []), 1):
        facts[f"profile {number}"] = ", ".join(f"{end} {shape}" for end, shape in profile.items())
    if layers:
        facts["layers"] = f"{len(layers)}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        facts["numbers that they read"] = _types_read(layers)
    return facts


def _types_read(layers: Sequence[Mapping[str, Any]]) -> str:
    read = Counter(str(each) for layer in layers for each in dict.fromkeys(layer.get("inputs", [])))
    return ", ".join(f"{dtype} in {count}" for dtype, count in read.most_common())


def _stage_text(record: Mapping[str, Any]) -> str:
    resolved, metrics = record.get("resolved", {}), record.get("metrics", {})
    test = metrics.get("test") or {}
    facts = {
        "stage": str(record.get("key", "")),
        **{
            name: clipped(json.dumps(resolved[name]))
            for name in ("model", "objective", "data", "train")
            if name in resolved
        },
        "head": f"{resolved.get('classes')} classes, {resolved.get('subclasses')} subclasses each",
        "seed": str(resolved.get("seed")),
        "parents": clipped(json.dumps(resolved.get("parents"))),
        **({"test accuracy": f"{100 * test['accuracy']:.2f} % of {test['total']:,} rows"} if test else {}),
        **{f"sha256 of {name}": str(value) for name, value in record["sha256"].items()},
        "made with": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
    }
    return "\n".join(pairs(facts))


def _indented(facts: Mapping[str, str]) -> list[str]:
    return [f"  {line}" for line in pairs(facts)]


def _axes(axes: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, axes))}]"
