"""Losses and gradients against golden vectors: numbers from published code and printed formulas.

The folder is tests/golden, or the one that EDGEFOLD_GOLDEN names; its README describes the form.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import lelp, subclass_metrics
from compress.embedding_sums import EmbeddingSums
from compress.models import Output, Shapes
from compress.objectives import Heads, functional
from compress.objectives.connectors import Connector, Projection
from compress.objectives.crd import CRD, CRDSpec
from compress.objectives.kd import KDSpec
from export.fold import fold_logits, fold_probabilities

FOLDER = Path(os.environ.get("EDGEFOLD_GOLDEN") or Path(__file__).parents[2] / "golden")
CASES: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())["cases"]

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]
# `hyper` of the case, and its `formula`, which alone tells some variants apart.
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
    alpha = hyper["alpha"]
    if "gamma" in hyper:
        kl_weight, ce_weight = alpha, hyper["gamma"]
    else:
        kl_weight, ce_weight = {"kl": (alpha, 1 - alpha), "ce": (1 - alpha, alpha)}[hyper["alpha_weights"]]
    spec = KDSpec(tau=hyper["tau"], kl_weight=kl_weight, ce_weight=ce_weight)
    heads = Heads(x["student_logits"].shape[1], 1, 1)
    assert spec.problem(heads) is None
    student, teacher = (Output(x[name], x[name], ()) for name in ("student_logits", "teacher_logits"))
    return {"loss": spec.build(heads)(student, teacher, x["labels"])}


def dkd(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    options = {"tau": hyper["tau"], "tckd": hyper["alpha"], "nckd": hyper["beta"]}
    return {"loss": functional.decoupled_kd(x["student_logits"], x["teacher_logits"], x["labels"], **options)}


def logit_smooth_l1(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": functional.logit_smooth_l1(x["student_logits"], x["teacher_logits"], hyper["beta"])}


def vid(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = functional.same_size(x["student_map"], x["teacher_map"])
    mean = student
    for i, name in enumerate(("w1", "w2", "w3")):
        mean = torch.nn.functional.conv2d(mean.relu() if i else mean, x[name])
    loss = functional.variational_information(mean, x["log_scale"], teacher, "repdistiller", hyper["eps"])
    log_scale_init = functional.log_scale_of(hyper["init_pred_var"], hyper["eps"])
    return {"loss": loss, "log_scale_init": torch.tensor(log_scale_init, dtype=torch.float64)}


def ofd(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    losses, margins = [], {}
    for i in range(sum(name.startswith("student_map") for name in x)):
        student, teacher = x[f"student_map{i}"], x[f"teacher_map{i}"]
        names = {"conv.weight": "conv_weight", "norm.weight": "bn_weight", "norm.bias": "bn_bias"}
        projected = with_parameters(
            Projection(student.shape[1], teacher.shape[1]),
            {ours: x[f"connector_{theirs}{i}"] for ours, theirs in names.items()},
            student,
        )
        margins[f"margin{i}"] = functional.normal_margin(x[f"teacher_bn_weight{i}"], x[f"teacher_bn_bias{i}"])
        losses.append(functional.overhaul(projected, functional.margin_relu(teacher, margins[f"margin{i}"])))
    return {"loss": functional.halved_sum(losses), **margins}


def ab(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    compared = [(x[f"student_map{i}"], x[f"teacher_map{i}"]) for i in range(hyper["num_layers"])]
    return {"loss": functional.activation_boundaries(compared, hyper["margin"], "repdistiller")}


def crd(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = x["student_feature"], x["teacher_feature"]
    shapes = [Shapes(feature.shape[1], (), ()) for feature in (student, teacher)]
    options = CRDSpec(negatives=hyper["K"], width=hyper["feat_dim"], tau=hyper["T"], momentum=hyper["momentum"])
    term = CRD(Heads(2, 1, 1, *shapes), options).to(student.dtype)
    for layer, side in ((term.embed_student, "s"), (term.embed_teacher, "t")):
        for name in ("weight", "bias"):
            delattr(layer, name)  # A plain tensor in the place of the parameter keeps the case's graph.
            setattr(layer, name, x[f"embed_{side}_{name}"])
    term.memory_student, term.memory_teacher = x["memory_student"], x["memory_teacher"]
    if "Z_student" in x:
        term.log_z = torch.stack([x["Z_student"], x["Z_teacher"]]).log()
    assert torch.equal(x["index"], x["contrast_index"][:, 0])
    return {
        "loss": term.contrast(student, teacher, x["contrast_index"]),
        "Z_student": term.log_z[0].exp(),
        "Z_teacher": term.log_z[1].exp(),
        "memory_student_after": term.memory_student,
        "memory_teacher_after": term.memory_teacher,
    }


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


SRRL_REDUCTIONS: dict[str, Any] = {
    "sum_channels_mean_batch": "paper",
    "sum_classes_mean_batch": "paper",
    "mean": "code",
}


def srrl_fm(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    reduction = SRRL_REDUCTIONS[hyper["reduction"]]
    return {"loss": functional.srrl_feature_matching(x["student_feature"], x["teacher_feature"], reduction)}


def srrl_sr(form: functional.SoftmaxRegression) -> Adapter:
    def adapter(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
        assert RESCALES[hyper.get("rescale", "tau^2")] == "tau2"
        loss = functional.srrl_softmax_regression(
            x["student_feature"],
            x["teacher_feature"],
            x["teacher_fc_weight"],
            x["teacher_fc_bias"],
            form,
            reduction=SRRL_REDUCTIONS[hyper.get("reduction", "mean")],
            tau=float(hyper.get("tau", 1.0)),
            labels=x.get("labels"),
        )
        return {"loss": loss}

    return adapter


def srrl_total(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    connected = with_parameters(
        Connector(x["student_feature_map"].shape[1], x["teacher_feature_map"].shape[1], bias=False),
        {
            "conv.weight": x["connector_conv_weight"],
            "norm.weight": x["connector_bn_weight"],
            "norm.bias": x["connector_bn_bias"],
        },
        x["student_feature_map"],
    )
    features = {
        **x,
        "student_feature": connected.mean((2, 3)),
        "teacher_feature": x["teacher_feature_map"].mean((2, 3)),
    }
    fm = srrl_fm(features, {"reduction": "mean"})["loss"]
    sr = srrl_sr("l2")(features, {"reduction": "mean"})["loss"]
    ce = functional.cross_entropy(x["student_logits"], x["labels"])
    return {"loss": ce + hyper["alpha"] * fm + hyper["beta"] * sr, "fm": fm, "sr": sr, "ce": ce}


def fitnet(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    student = x["student_map"]
    if "conv_weight" in x:
        student = with_parameters(
            Connector(student.shape[1], x["teacher_map"].shape[1], bias=True),
            {
                "conv.weight": x["conv_weight"],
                "conv.bias": x["conv_bias"],
                "norm.weight": x["bn_weight"],
                "norm.bias": x["bn_bias"],
            },
            student,
        )
    return {"loss": functional.fitnet(student, x["teacher_map"], "repdistiller")}


def embedding(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    variant: functional.EmbeddingVariant = "norm" if "not squared" in hyper["formula"] else "squared"
    connected = torch.nn.functional.linear(x["student_feature"], x["projection"])
    return {"loss": functional.embedding_distance(connected, x["teacher_feature"], variant)}


CORRELATION_KERNELS: dict[str, functional.CorrelationKernel] = {"bilinear": "bilinear", "gaussian": "gaussian"}


def at(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    variant: functional.AttentionVariant = "paper" if hyper.get("mode") == "paper" else "code"
    loss = functional.attention_transfer(x["student_map"], x["teacher_map"], variant, power=hyper.get("p", 2))
    return {"loss": loss}


def nst(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    assert (hyper["kernel"], hyper["degree"], hyper["c"]) == ("poly", 2, 0)
    return {"loss": functional.neuron_selectivity(x["student_map"], x["teacher_map"])}


# `guard=False` in the next ones: the published slope of rows of zeros, which is 1e12, and not the term's, which is 0.


def ft(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = x["student_factor"], x["teacher_factor"]
    if "p1" in hyper:
        loss = functional.factor_transfer(student, teacher, "attention", p1=hyper["p1"], p2=hyper["p2"])
    else:
        loss = functional.factor_transfer(student, teacher, "flat", p2=hyper["p"], guard=False)
    return {"loss": loss}


def rkd(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    assert hyper["eps"] == 1e-12
    weights = {"distance": hyper["w_d"], "angle": hyper["w_a"]}
    return {"loss": functional.relational(x["student_feature"], x["teacher_feature"], **weights, guard=False)}


def sp(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    rows: functional.SimilarityRows = "l1" if "L1-normalised" in hyper["formula"] else "l2"
    return {"loss": functional.similarity_preserving(x["student_map"], x["teacher_map"], rows, guard=False)}


def cc(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = x["student_feature"], x["teacher_feature"]
    if "type" not in hyper:
        return {"loss": functional.correlation_congruence(student, teacher, "repdistiller")}
    kernel = CORRELATION_KERNELS[hyper["type"]]
    options = {"gamma": hyper["gamma"], "order": hyper["max_p"]} if kernel == "gaussian" else {}
    return {"loss": functional.correlation_congruence(student, teacher, "torchdistill", kernel=kernel, **options)}


def pkt(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": functional.probabilistic_transfer(x["student_feature"], x["teacher_feature"], hyper["eps"])}


def fsp(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    variant: functional.FlowVariant = "torchdistill" if "column L2 norms" in hyper["formula"] else "repdistiller"
    sides = ([x[f"{side}_map{i}"] for i in range(len(x) // 2)] for side in ("student", "teacher"))
    return {"loss": functional.flow(*sides, variant)}


def lelp_fit(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    assert hyper["pca"] == "centred"
    fitted = lelp.fit(
        EmbeddingSums.of(x["features"], x["labels"], hyper["num_classes"]),
        x["teacher_fc_weight"].T,
        hyper["S"],
        rotations=x["Q"],
        project="lelp" if hyper["project_out_classifier"] else "identity",
        sigma=hyper["sigma"],
    )
    return {
        "directions": fitted.directions,
        "rotated_normalised": fitted.projections,
        "class_means": fitted.means,
        "sigma": fitted.sigma,
        "subspace_projector": fitted.directions.mT @ fitted.directions,
    }


def lelp_loss(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    logits = x["teacher_features"] @ x["teacher_fc_weight"] + x["teacher_fc_bias"]
    taught = (logits, x["teacher_features"], x["class_means"], x["rotated_normalised"])
    temperatures = {"tau": hyper["tau"], "beta": hyper["beta"]}
    return {
        "loss": functional.lelp(x["student_subclass_logits"], *taught, **temperatures),
        "teacher_logits": logits,
        "subclass_logits": functional.lelp_coordinates(*taught[1:]),
        "teacher_subclass_probs": functional.lelp_log_targets(*taught, **temperatures).exp(),
        "student_class_probs": fold_probabilities(x["student_subclass_logits"].softmax(1), hyper["S"]),
    }


def effective_label_bits(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    bits = subclass_metrics.effective_label_bits(x["P"].numpy(), hyper["num_subclasses_per_class"])
    return {"bits": torch.from_numpy(bits)}


def subclass_entropies(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    return {
        "utilisation_entropy_bits": as_tensor(subclass_metrics.utilisation_entropy_bits(x["subclass_logits"])),
        "prediction_entropy_bits": as_tensor(subclass_metrics.prediction_entropy_bits(x["subclass_logits"])),
        "max_bits": as_tensor(math.log2(hyper["num_classes"] * hyper["num_subclasses_per_class"])),
    }


def best_permutation_accuracy(x: Inputs, hyper: Hyper) -> dict[str, Tensor]:
    heads = {"classes": hyper["num_classes"], "subclasses": hyper["num_subclasses_per_class"]}
    best = subclass_metrics.best_permutation(x["predicted"].numpy(), x["true"].numpy(), **heads)
    return {
        "accuracy_global": as_tensor(best.accuracy),
        "accuracy_within_class": as_tensor(best.within_class),
        "confusion": torch.from_numpy(best.confusion),
    }


def as_tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def with_parameters(connector: torch.nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Apply a connector in training mode with the case's parameters in the place of its own."""
    return torch.func.functional_call(connector.to(x.dtype).train(), parameters, x)


OFFERED: dict[str, Adapter] = {
    "ab": ab,
    "at": at,
    "best_permutation_accuracy": best_permutation_accuracy,
    "cc": cc,
    "ce_label_smoothing": ce_label_smoothing,
    "crd": crd,
    "dkd": dkd,
    "effective_label_bits": effective_label_bits,
    "embedding": embedding,
    "fitnet": fitnet,
    "fsp": fsp,
    "ft": ft,
    "kd_kl": kd_kl,
    "kd_kl_plus_ce": kd_kl_plus_ce,
    "lelp_fit": lelp_fit,
    "lelp_loss": lelp_loss,
    "logit_mse": logit_mse,
    "logit_mse_ensemble": logit_mse_ensemble,
    "logit_smooth_l1": logit_smooth_l1,
    "nst": nst,
    "ofd": ofd,
    "pkt": pkt,
    "rkd": rkd,
    "scd_aux": scd_aux,
    "scd_distill": scd_distill,
    "scd_intraclass": scd_intraclass,
    "scd_student_total": scd_student_total,
    "scd_teacher_total": scd_teacher_total,
    "scd_xent": scd_xent,
    "sp": sp,
    "srrl_fm": srrl_fm,
    "srrl_sr_ce_label": srrl_sr("label"),
    "srrl_sr_ce_soft": srrl_sr("ce"),
    "srrl_sr_kl": srrl_sr("kl"),
    "srrl_sr_l2": srrl_sr("l2"),
    "srrl_total": srrl_total,
    "subclass_entropies": subclass_entropies,
    "vid": vid,
}

NOT_OFFERED: dict[str, str] = {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_loss_and_gradients_agree(case: dict[str, Any], dtype: torch.dtype) -> None:
    adapter = adapter_of(case)
    arrays = load(case)
    inputs = tensors_of(arrays, dtype)
    results = adapter(inputs, {"formula": case["formula"], **case["hyper"]})
    compared = 0
    for name, expected in with_prefix("out__", arrays).items():
        compared += check(f"out__{name}", results[name].detach(), expected, case, result_bounds(case, dtype, expected))
    for name in with_prefix("grad__", arrays):
        source, loss = differentiated(name, inputs, results)
        (gradient,) = torch.autograd.grad(loss, inputs[source], retain_graph=True)
        expected = arrays[f"grad__{name}"]
        compared += check(f"grad__{name}", gradient, expected, case, gradient_bounds(case, dtype, expected))
    assert "loss" not in results or torch.isfinite(results["loss"])  # Fits and metrics have none.
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
