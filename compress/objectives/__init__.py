"""The objectives' terms: one file and one line each."""

from __future__ import annotations

from compress.objectives.base import Heads, Losses, Objective, Preparation, Term, TermSpec, term_names
from compress.objectives.ce import CrossEntropySpec
from compress.objectives.intra_subclass import IntraSubclassSpec
from compress.objectives.kl import KLSpec
from compress.objectives.mse import MSESpec
from compress.objectives.subclass_auxiliary import SubclassAuxiliarySpec

OBJECTIVES: dict[str, type[TermSpec]] = {
    "ce": CrossEntropySpec,
    "intra_subclass": IntraSubclassSpec,
    "kl": KLSpec,
    "mse": MSESpec,
    "subclass_auxiliary": SubclassAuxiliarySpec,
}

__all__ = ["OBJECTIVES", "Heads", "Losses", "Objective", "Preparation", "Term", "TermSpec", "term_names"]
