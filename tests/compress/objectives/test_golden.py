"""Losses and gradients against golden vectors: numbers from published code and printed formulas.

The folder is tests/golden, or the one that EDGEFOLD_GOLDEN names; its README describes the form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.objectives import functional
from export.fold import fold_logits, fold_probabilities

FOLDER = Path(os.environ.get("EDGEFOLD_GOLDEN") or Path(__file__).parents[2] / "golden")
CASES: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())["cases"]

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]
# Results by name; `loss` and its variants (`loss_t2`) are differentiated.
Adapter = Callable[[Inputs, Hyper], dict[str, Tensor]]

RESCALES: dict[str, functional.Rescale] = {"tau^2": "tau2", "max(tau,tau^2)": "max", "none": "none"}
REDUCTIONS: dict[str, Any] = {"sum_classes_mean_batch": "sum", "mean": "mean"}
FORMS: dict[str, Any] = {"unit_norm": "unitnorm", "unit_variance": "literal"}


def kd_kl(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    # At infinity the case names no rescale: the limit is that of tau² KL.
    rescale = RESCALES[hyper.get("rescale", "tau^2")]
    return {"loss": functional.kl_divergence(x["student_logits"], x["teacher_logits"], float(hyper["tau"]), rescale)}


def kd_kl_plus_ce(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    kl = kd_kl(x, {**hyper, "rescale": hyper.get("rescale", "tau^2")})["loss"]
    ce = functional.cross_entropy(x["student_logits"], x["labels"])
    alpha = hyper["alpha"]
    if "gamma" in hyper:
        return {"loss": alpha * kl + hyper["gamma"] * ce}
    kl_weight = {"kl": alpha, "ce": 1 - alpha}[hyper["alpha_weights"]]
    return {"loss": kl_weight * kl + (1 - kl_weight) * ce}


def logit_mse(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": functional.logit_mse(x["student_logits"], x["teacher_logits"], REDUCTIONS[hyper["reduction"]])}


def logit_mse_ensemble(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    combine = {"mean": torch.mean, "sum": torch.sum}[hyper["teacher_combine"]]
    teacher = combine(x["teacher_logits"], dim=0)  # (teachers, N, C) -> (N, C)
    return {"loss": functional.logit_mse(x["student_logits"], teacher, "mean")}


def ce_label_smoothing(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": functional.cross_entropy(x["student_logits"], x["labels"], hyper["smoothing"])}


def scd_aux(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    form = FORMS[hyper["normalisation"]]
    return {"loss": functional.subclass_auxiliary(x["subclass_logits"], hyper["T"], form, hyper["eps"])}


def scd_distill(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = x["student_subclass_logits"], x["teacher_subclass_logits"]
    return {"loss": functional.soft_cross_entropy(student, teacher, hyper["T"])}


def scd_xent(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    subclasses = hyper["num_subclasses_per_class"]
    class_logits = fold_logits(x["subclass_logits"], subclasses)
    return {
        "loss": functional.cross_entropy(class_logits, x["labels"]),
        "class_logits": class_logits,
        "class_probs": fold_probabilities(x["subclass_logits"].softmax(1), subclasses),
    }


def scd_student_total(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    distill = scd_distill(x, hyper)["loss"]
    xent = scd_xent({"subclass_logits": x["student_subclass_logits"], "labels": x["labels"]}, hyper)["loss"]
    return {"loss": hyper["alpha"] * distill + (1 - hyper["alpha"]) * xent, "distill": distill, "xent": xent}


def scd_teacher_total(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": scd_xent(x, hyper)["loss"] + hyper["beta"] * scd_aux(x, hyper)["loss"]}


def scd_intraclass(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    arguments = (
        x["student_subclass_logits"],
        x["teacher_subclass_logits"],
        hyper["num_subclasses_per_class"],
        hyper["T"],
    )
    return {
        "loss": functional.intra_subclass(*arguments),
        "loss_t2": functional.intra_subclass(*arguments, rescale="tau2"),
    }


OFFERED: dict[str, Adapter] = {
    "ce_label_smoothing": ce_label_smoothing,
    "kd_kl": kd_kl,
    "kd_kl_plus_ce": kd_kl_plus_ce,
    "logit_mse": logit_mse,
    "logit_mse_ensemble": logit_mse_ensemble,
    "scd_aux": scd_aux,
    "scd_distill": scd_distill,
    "scd_intraclass": scd_intraclass,
    "scd_student_total": scd_student_total,
    "scd_teacher_total": scd_teacher_total,
    "scd_xent": scd_xent,
}

NOT_OFFERED: dict[str, str] = {
    "ab": "activation boundaries are not built yet",
    "at": "attention transfer is not built yet",
    "best_permutation_accuracy": "the subclass metrics are not built yet",
    "cc": "correlation congruence is not built yet",
    "crd": "contrastive representation distillation is not built yet",
    "dkd": "decoupled KD is not built yet",
    "effective_label_bits": "the subclass metrics are not built yet",
    "embedding": "embedding distillation is not built yet",
    "fitnet": "FitNet hints are not built yet",
    "fsp": "FSP matrices are not built yet",
    "ft": "factor transfer is not built yet",
    "lelp_fit": "LELP is not built yet",
    "lelp_loss": "LELP is not built yet",
    "logit_smooth_l1": "smooth L1 on logits is not offered: the paper's results do not use it",
    "nst": "neuron selectivity transfer is not built yet",
    "ofd": "overhaul feature distillation is not built yet",
    "pkt": "probabilistic knowledge transfer is not built yet",
    "rkd": "relational KD is not built yet",
    "sp": "similarity preservation is not built yet",
    "srrl_fm": "SRRL is not built yet",
    "srrl_sr_ce_label": "SRRL is not built yet",
    "srrl_sr_ce_soft": "SRRL is not built yet",
    "srrl_sr_kl": "SRRL is not built yet",
    "srrl_sr_l2": "SRRL is not built yet",
    "srrl_total": "SRRL is not built yet",
    "subclass_entropies": "the subclass metrics are not built yet",
    "vid": "variational information distillation is not built yet",
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_loss_and_gradients_agree(case: dict[str, Any], dtype: torch.dtype) -> None:
    adapter = adapter_of(case)
    arrays = load(case)
    inputs = tensors_of(arrays, dtype)
    results = adapter(inputs, case["hyper"])
    compared = 0
    for name, expected in with_prefix("out__", arrays).items():
        compared += check(f"out__{name}", results[name].detach(), expected, case, result_bounds(case, dtype, expected))
    for name in with_prefix("grad__", arrays):
        source, loss = differentiated(name, inputs, results)
        (gradient,) = torch.autograd.grad(loss, inputs[source], retain_graph=True)
        expected = arrays[f"grad__{name}"]
        compared += check(f"grad__{name}", gradient, expected, case, gradient_bounds(case, dtype, expected))
    assert torch.isfinite(results["loss"])
    assert compared or case["reference_kind"] == "required_behaviour", f"{case['name']} compares nothing"


def adapter_of(case: Mapping[str, Any]) -> Adapter:
    method = case["method"]
    if method in NOT_OFFERED:
        pytest.skip(NOT_OFFERED[method])
    if method not in OFFERED:
        pytest.fail(f"method '{method}' of case {case['name']} is neither in OFFERED nor in NOT_OFFERED")
    return OFFERED[method]


def load(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with np.load(FOLDER / case["file"], allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def tensors_of(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return inputs and parameters, numbers with a fraction in `dtype`; those with a gradient get a graph."""
    tensors: dict[str, Tensor] = {}
    for name, array in {**with_prefix("in__", arrays), **with_prefix("param__", arrays)}.items():
        tensor = torch.from_numpy(np.array(array))
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        wanted = any(f"grad__{name}{variant}" in arrays for variant in ("", "_t2"))
        tensors[name].requires_grad_(wanted)
    return tensors


def differentiated(name: str, inputs: Inputs, results: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """Return which input `grad__<name>` belongs to and of which loss it is."""
    if name in inputs:
        return name, results["loss"]
    return name.removesuffix("_t2"), results["loss_t2"]


def with_prefix(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def result_bounds(case: Mapping[str, Any], dtype: torch.dtype, expected: np.ndarray) -> np.ndarray:
    if dtype == torch.float64:
        return float64_bounds(case, expected)
    allowed = case["tolerance"]["float32"]
    return allowed.get("loss_atol", 0.0) + allowed.get("loss_rtol", 0.0) * np.abs(expected)


def gradient_bounds(case: Mapping[str, Any], dtype: torch.dtype, expected: np.ndarray) -> np.ndarray:
    if dtype == torch.float64:
        return float64_bounds(case, expected)
    allowed = case["tolerance"]["float32"]
    slack = allowed.get("grad_atol_abs", 0.0) + allowed.get("grad_atol_rel_to_max", 0.0) * np.abs(expected).max(
        initial=0
    )
    return slack + allowed.get("grad_rtol", 0.0) * np.abs(expected)


def float64_bounds(case: Mapping[str, Any], expected: np.ndarray) -> np.ndarray:
    allowed = case["tolerance"]["float64"]
    return allowed.get("atol", 0.0) + allowed.get("rtol", 0.0) * np.abs(expected)


def check(name: str, got: Tensor, expected: np.ndarray, case: Mapping[str, Any], bounds: np.ndarray) -> bool:
    """Compare one array and return True; without a usable reference value it only has to be finite."""
    assert torch.isfinite(got).all(), f"{case['name']}: {name} has values that are not finite"
    if case["reference_kind"] == "required_behaviour" and not np.isfinite(expected).all():
        return False
    assert tuple(got.shape) == expected.shape
    error = np.abs(got.double().numpy() - expected)
    worst = int(np.argmax(error - bounds))
    assert (error <= bounds).all(), (
        f"{case['name']}: {name} is {got.flatten()[worst]!s} at {worst}, expected {expected.flat[worst]!s} "
        f"± {np.ravel(bounds)[worst]:.3g}"
    )
    return True


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_file_holds_the_arrays_the_index_names(case: dict[str, Any]) -> None:
    found = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in load(case).items()}
    assert found == case["arrays"]


def test_case_names_are_unique() -> None:
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names)


def test_method_is_offered_or_not_offered() -> None:
    assert not OFFERED.keys() & NOT_OFFERED.keys()
