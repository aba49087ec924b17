"""MODEL_CARD.md of a student that was trained elsewhere: what came, what it is, how good it is on the rows given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.card_parts import LICENCE, files_table, in_words, made_with, share, shortened, table, yaml_block
from compress.models.profile import profile_of
from compress.units import count

if TYPE_CHECKING:
    from compress.ready_student import ReadyStudent
    from export.bundle import OnnxForm

_AFTER = (
    "Every file was compared with PyTorch when it was written; `edgefold verify` on the bundle's folder does it again."
)


def ready_card(
    student: ReadyStudent, onnx: bytes, precision: str, forms: Sequence[OnnxForm], *, correct: int, total: int
) -> str:
    """Return the card that travels in the bundle. correct, total: rows that the student in PyTorch has right."""
    outputs = len(student.class_names) * student.subclasses
    profile = profile_of(student.spec, signature=student.signature, outputs=outputs)
    parameters = sum(each.numel() for each in student.model.parameters())
    facts = [
        ("task", f"{len(student.class_names)} classes: {shortened(student.class_names)}"),
        ("input", f"{student.signature}, {student.signature.dtype} {student.signature.layout}"),
        ("model", f"`{in_words(student.spec)}`"),
        ("size", f"{parameters:,} parameters, {count(profile.total_macs)} multiply-accumulates a row"),
        ("subclasses", f"{student.subclasses} for each class, folded inside the graph"),
        ("accuracy, 95 % interval", f"{share(correct, total)}, {total:,} rows that came with it"),
        ("key", f"`{student.key}`"),
    ]
    parts = [
        f"# {student.name}",
        "Trained elsewhere: how, and on what, its weights do not say.",
        table(("", ""), facts),
        "## Files",
        files_table(onnx, precision, forms),
        _AFTER,
        LICENCE,
        "## Made with",
        made_with(),
        "## Made of",
        yaml_block(student.recipe),
    ]
    return "\n\n".join(parts) + "\n"
