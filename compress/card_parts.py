"""Parts of a MODEL_CARD.md that every card has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifact import versions
from compress.kinds import Spec, as_recipe_value
from compress.provenance import without_places
from compress.units import size
from runtime.accuracy import wilson_interval

if TYPE_CHECKING:
    from export.bundle import OnnxForm

LICENCE = (
    "**Licence and terms of the data**: not recorded by the recipe; look them up where the data comes from before "
    "this model is passed on."
)


def made_with() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def files_table(onnx: bytes, precision: str, forms: Sequence[OnnxForm]) -> str:
    """Return the files of a bundle that is being written. precision: of `onnx`, the file of that format."""
    files = [("onnx", precision, size(len(onnx)))]
    files += [(form.precision, form.precision, size(len(form.model))) for form in forms]
    return table(("format", "precision", "size"), files)


def yaml_block(text: str) -> str:
    return f"```yaml\n{text.rstrip()}\n```"


def share(correct: int, total: int) -> str:
    low, high = wilson_interval(correct, total)
    return f"{100 * correct / total:.2f} % ({100 * low:.2f} – {100 * high:.2f})"


def in_words(spec: Spec) -> str:
    """Return a kind as a recipe writes it, with every option."""
    ((kind, options),) = as_recipe_value(spec).items()
    return f"{kind}: {_flow(without_places(options))}" if options else kind


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items() if each is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
