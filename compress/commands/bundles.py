"""How verbs find the bundle that is named, and hand it to the device side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from runtime.errors import BundleError, UsageError


def is_bundle(target: str) -> bool:
    # Any folder: a recipe is a file or a name, and what a bundle lacks is for its reader to say.
    return Path(target).is_dir()


def bundle_of(target: str, runs: Path) -> Path:
    """Return the bundle folder of a bundle path or of a recipe that was run; an ONNX file stays what it is.

    What was run in another way has a name of its own: `quickstart@opset17`.
    """
    if Path(target).is_dir() or Path(target).suffix == ".onnx":
        return Path(target)
    if Path(target).name == "bundle":
        raise BundleError(f"{target}: no such folder", "Name a bundle folder, or a recipe that was run.")
    from compress.library import find_recipe, recipe_name

    last, at, mark = ("", "", "") if Path(target).exists() else Path(target).name.partition("@")
    name = str(Path(target).with_name(last)) if last else target
    recipe = recipe_name(find_recipe(name))
    folder = runs / f"{recipe}{at}{mark}"
    found = sorted(manifest.parent for manifest in folder.rglob("bundle/manifest.json"))
    if not found:
        opset = mark.rpartition("opset")[2] if "opset" in mark else ""
        first = f"edgefold export {name} --opset {opset}" if opset else f"edgefold run {name}"
        raise UsageError(f"recipe {recipe} has no bundle below {folder}", f"Run `{first}` first.")
    if len(found) > 1:
        raise UsageError(f"recipe {recipe} has {len(found)} bundles", "Name one: " + ", ".join(map(str, found)))
    return found[0]


def require_bundle(bundle: Path) -> None:
    if not bundle.is_dir():
        raise UsageError(f"{bundle}: a device of --target takes a bundle", "Measure the file here, without --target.")


def device_side(verb: str, bundle: Path, arguments: list[Any], output: Path | None, as_json: bool) -> None:
    """Run a verb of `python -m runtime` in this process and end with its exit code."""
    from runtime.__main__ import main as runtime_main

    extra = (["--output", output] if output else []) + (["--json"] if as_json else [])
    code = runtime_main([verb, str(bundle), *map(str, [*arguments, *extra])])
    if code:
        sys.exit(code)
