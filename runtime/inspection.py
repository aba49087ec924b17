"""What any exported file says of itself: a bundle, an ONNX file, an engine with its description, a finished stage.

Needs the standard library alone. Whatever has a checksum is compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bundle import MANIFEST, Bundle, open_bundle
from runtime.engine_file import engine_file_from_json
from runtime.errors import BundleError
from runtime.files import sha256_of_bytes, sha256_of_file
from runtime.onnx_file import OnnxHeader, onnx_header_from_bytes, refuse_external_data
from runtime.onnx_summary import GraphSummary, summary_from_bytes

STAGE = "stage.json"
RECIPE = "edgefold.recipe"  # among the metadata of a model
_DESCRIPTION = ".json"  # after an engine's own name


@dataclass(frozen=True, eq=False)
class InspectedModel:
    """An ONNX file. recipe: what it was made by, where it says so."""

    path: Path
    sha256: str
    size_bytes: int
    header: OnnxHeader
    summary: GraphSummary

    @property
    def recipe(self) -> str:
        return self.header.metadata.get(RECIPE, "")

    def to_json(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "ir_version": self.header.ir_version,
            "opsets": dict(self.header.opsets),
            "metadata": dict(self.header.metadata),
            **self.summary.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Inspected:
    """One of four: a bundle with its models, an ONNX file, an engine's description, a stage's record.

    home: the bundle that a file lies in, and `format` what it is there. engine, stage: what describes it. engines: the
    same of a bundle's engines, by format.
    """

    path: Path
    models: Mapping[str, InspectedModel]
    bundle: Bundle | None = None
    home: Bundle | None = None
    format: str = ""
    engine: Mapping[str, Any] | None = None
    stage: Mapping[str, Any] | None = None
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        return next((model.recipe for model in self.models.values() if model.recipe), "")

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"kind": "inspect", "path": str(self.path)}
        if self.bundle is not None:
            document["checksum"] = self.bundle.checksum
            document["manifest"] = json.loads(self.bundle.read_bytes(MANIFEST))
            document["engines"] = {name: dict(engine) for name, engine in self.engines.items()}
        if self.home is not None:
            document |= {"bundle": self.home.name, "format": self.format, "checksum": self.home.checksum}
        if self.engine is not None:
            document["engine"] = dict(self.engine)
        if self.stage is not None:
            document["stage"] = dict(self.stage)
        document["onnx"] = {name: model.to_json() for name, model in self.models.items()}
        document["recipe"] = self.recipe or None
        return document


def inspect(path: Path) -> Inspected:
    """Return what lies at `path`. Raises BundleError where it is none of these, damaged or unsafe."""
    if path.is_dir():
        return _stage(path) if (path / STAGE).is_file() and not (path / MANIFEST).exists() else _bundle(path)
    if not path.exists():
        raise BundleError(f"{path}: does not exist", "Name a bundle, an .onnx file, an engine or a stage's folder.")
    description = path.with_name(path.name + _DESCRIPTION)
    if path.suffix == _DESCRIPTION:
        return _engine(path.with_suffix(""), path)
    if description.is_file():
        return _engine(path, description)
    home, format = _home(path)
    return Inspected(path, {format or path.name: _model(path, home)}, home=home, format=format)


def _bundle(path: Path) -> Inspected:
    bundle = open_bundle(path)
    onnx = {name: entry.file for name, entry in bundle.formats.items() if entry.file.endswith(".onnx")}
    models = {name: _model(bundle.path / file, bundle) for name, file in onnx.items()}
    engines = {
        name: engine_file_from_json(bundle.read_bytes(entry.description), str(path / entry.description)).to_json()
        for name, entry in bundle.formats.items()
        if entry.description is not None
    }
    return Inspected(path, models, bundle=bundle, engines=engines)


def _model(path: Path, home: Bundle | None) -> InspectedModel:
    data = home.read_bytes(path.name) if home and path.name in home.checksums else _read(path)
    header = onnx_header_from_bytes(data, str(path))
    refuse_external_data(header, path)
    return InspectedModel(path, sha256_of_bytes(data), len(data), header, summary_from_bytes(data, str(path)))


def _home(path: Path) -> tuple[Bundle | None, str]:
    """Return the bundle that a file lies in, and the format that it is there."""
    if not (path.parent / MANIFEST).is_file():
        return None, ""
    bundle = open_bundle(path.parent)
    return bundle, next((name for name, form in bundle.formats.items() if form.file == path.name), "")


def _engine(path: Path, description: Path) -> Inspected:
    """Read the description of an engine, and compare the engine and the ONNX file of the bundle with it."""
    value = _object(description)
    if "plan_sha256" not in value:
        raise BundleError(f"{description}: no description of an engine", "Name the engine, with its .json beside it.")
    if not path.is_file():
        raise BundleError(f"{path} is missing, and {description.name} describes it", "Copy both.")
    if sha256_of_file(path) != value["plan_sha256"]:
        raise BundleError(f"{path}: its sha256 is not the one in {description.name}", "Build the engine again.")
    home, format = _home(path)
    model = path.parent / str(value.get("onnx_file", ""))
    models = {}
    if model.is_file():
        found = _model(model, home)
        if found.sha256 == value.get("onnx_sha256"):
            models[model.name] = found
    return Inspected(path, models, home=home, format=format, engine=value)


def _stage(path: Path) -> Inspected:
    """Read a finished stage, and compare its files with their checksums."""
    record = _object(path / STAGE)
    sums = record.get("sha256")
    if not isinstance(sums, dict):
        raise BundleError(f"{path / STAGE}: no record of a stage", "Name a folder runs/stages/<key>.")
    for name, expected in sums.items():
        file = path / str(name)
        if file.parent != path or (file.is_file() and sha256_of_file(file) != expected):
            raise BundleError(f"{file} is altered or damaged: its sha256 is not the one in {STAGE}")
    return Inspected(path, {}, stage=record)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected an object")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
