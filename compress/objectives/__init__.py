"""The objectives' terms: one file and one line each."""

from __future__ import annotations

from compress.objectives.ab import ABSpec
from compress.objectives.at import AttentionSpec
from compress.objectives.base import Heads, Losses, Objective, Preparation, Term, TermSpec, term_names
from compress.objectives.cc import CorrelationSpec
from compress.objectives.ce import CrossEntropySpec
from compress.objectives.clusters import AgglomerativeSpec, KMeansSpec, OracleSpec, TSNEKMeansSpec
from compress.objectives.crd import CRDSpec
from compress.objectives.dkd import DKDSpec
from compress.objectives.embedding import EmbeddingSpec
from compress.objectives.fitnet import FitNetSpec
from compress.objectives.fsp import FlowSpec
from compress.objectives.ft import FactorSpec
from compress.objectives.intra_subclass import IntraSubclassSpec
from compress.objectives.kd import KDSpec
from compress.objectives.kl import KLSpec
from compress.objectives.lelp import LELPSpec
from compress.objectives.mse import MSESpec
from compress.objectives.nst import NeuronSelectivitySpec
from compress.objectives.ofd import OFDSpec
from compress.objectives.pkt import ProbabilisticTransferSpec
from compress.objectives.rkd import RelationalSpec
from compress.objectives.smooth_l1 import SmoothL1Spec
from compress.objectives.soft_ce import SoftCrossEntropySpec
from compress.objectives.sp import SimilarityPreservingSpec
from compress.objectives.srrl import SRRLSpec
from compress.objectives.subclass_auxiliary import SubclassAuxiliarySpec
from compress.objectives.vid import VIDSpec

OBJECTIVES: dict[str, type[TermSpec]] = {
    "ab": ABSpec,
    "agglomerative": AgglomerativeSpec,
    "at": AttentionSpec,
    "cc": CorrelationSpec,
    "ce": CrossEntropySpec,
    "crd": CRDSpec,
    "dkd": DKDSpec,
    "embedding": EmbeddingSpec,
    "fitnet": FitNetSpec,
    "fsp": FlowSpec,
    "ft": FactorSpec,
    "intra_subclass": IntraSubclassSpec,
    "kd": KDSpec,
    "kl": KLSpec,
    "kmeans": KMeansSpec,
    "lelp": LELPSpec,
    "mse": MSESpec,
    "nst": NeuronSelectivitySpec,
    "ofd": OFDSpec,
    "oracle": OracleSpec,
    "pkt": ProbabilisticTransferSpec,
    "rkd": RelationalSpec,
    "smooth_l1": SmoothL1Spec,
    "soft_ce": SoftCrossEntropySpec,
    "sp": SimilarityPreservingSpec,
    "srrl": SRRLSpec,
    "subclass_auxiliary": SubclassAuxiliarySpec,
    "tsne_kmeans": TSNEKMeansSpec,
    "vid": VIDSpec,
}

__all__ = ["OBJECTIVES", "Heads", "Losses", "Objective", "Preparation", "Term", "TermSpec", "term_names"]
