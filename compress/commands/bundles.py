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
    """Return the bundle folder of a bundle path or of a recipe that was run; an ONNX file stays what it is."""
    if Path(target).is_dir() or Path(target).suffix == ".onnx":
        return Path(target)
    if Path(target).name == "bundle":
        raise BundleError(f"{target}: no such folder", "Name a bundle folder, or a recipe that was run.")
    from compress.library import find_recipe
    from compress.variants import load_variants

    recipe = load_variants(find_recipe(target))[0].recipe
    found = sorted(manifest.parent for manifest in (runs / recipe.name).rglob("bundle/manifest.json"))
    if not found:
        raise UsageError(f"recipe {recipe.name} has no bundle below {runs}", f"Run `edgefold run {target}` first.")
    if len(found) > 1:
        raise UsageError(f"recipe {recipe.name} has {len(found)} bundles", "Name one: " + ", ".join(map(str, found)))
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
