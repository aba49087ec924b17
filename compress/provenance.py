"""The recipe of one run as text that travels with its files: everything resolved, and no place on this machine."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from compress.variants import Variant
from compress.yaml_document import read_document
from runtime.onnx_file import read_onnx_header

KEY = "edgefold.recipe"  # among the metadata of a model

# What a bundle is not made of: it would change without the bundle.
_LEFT_OUT = ("seeds", "train", "sweep", "benchmark", "expect")
# Keys of `data` and of teachers whose value is a place. What lies there is known by its content.
_PLACES = ("path", "onnx", "artifact")
_PATH_IN_TEXT = re.compile(r"(?<![\w./~:])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\\"',;:()]+){2,}")


def recipe_text(variant: Variant) -> str:
    """Return YAML of what the recipe's stages and export are in this run: with its seed, its swept values put in.

    Each stage has its training options in full. Read as a recipe it gives the same stages; of data and teachers that
    lie in files only their names are left.
    """
    recipe = variant.recipe
    value = recipe.model_dump(mode="json", exclude_none=True)
    for key in _LEFT_OUT:
        value.pop(key, None)
    value["seed"] = variant.seed
    value["data"].pop("root", None)
    for name, stage in value["stages"].items():
        stage["train"] = recipe.train_spec(name).model_dump(mode="json", exclude_none=True)
        stage.pop("expect", None)
    ordered = ("name", "description", "seed", "data", "stages", "export")
    return yaml_text({key: value[key] for key in ordered if value.get(key) not in (None, "")})


def recipe_in(model: Path) -> dict[str, Any] | None:
    """Return the recipe that an ONNX file carries; None where it carries none, as that of another program does."""
    text = read_onnx_header(model).metadata.get(KEY, "")
    value = read_document(text).value if text else None
    return value if isinstance(value, dict) and isinstance(value.get("data"), dict) else None


def yaml_text(value: Any) -> str:
    """Return YAML without a place on this machine, the same for the same value."""
    return yaml.safe_dump(
        without_places(value), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )


def without_places(value: Any, *, is_place: bool = False) -> Any:
    """Return plain data in which every path is only the name that it ends with."""
    if isinstance(value, dict):
        return {key: without_places(each, is_place=key in _PLACES) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each, is_place=is_place) for each in value]
    if not isinstance(value, str):
        return value
    if is_place or PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value[:1] == "~":
        return _last_part(value)
    return _PATH_IN_TEXT.sub(lambda match: _last_part(match[0]), value)


def _last_part(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name or path
