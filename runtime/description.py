"""How a bundle describes what makes its inputs: an object with a kind, that kind's version, and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import UsageError


def options_from_json(value: Any, *, kind: str, version: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the options `names` of a description. Raises UsageError for another kind or version, or without one."""
    if not isinstance(value, Mapping):
        raise UsageError(f"came {value!r}, expected an object")
    if (value.get("kind"), value.get("version")) != (kind, version):
        raise UsageError(
            f"kind is {value.get('kind')!r}, version {value.get('version')!r}; this edgefold reads "
            f"{kind!r}, version {version}",
            remedy="Install the edgefold version that wrote the bundle, or export it again.",
        )
    if missing := [name for name in names if name not in value]:
        raise UsageError(f"{', '.join(missing)} missing")
    return {name: value[name] for name in names}
