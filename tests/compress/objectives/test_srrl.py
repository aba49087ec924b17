"""SRRL at earlier maps: AdaIN by hand, the teacher's frozen layers behind it, positions by name, training runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from compress.models import MODELS, Classifier, Output, Shapes, shapes_of
from compress.objectives import Heads, Objective, Preparation, functional
from compress.objectives.ce import CrossEntropySpec
from compress.objectives.srrl import SRRL, EarlierSRRL, SRRLSpec
from export.graph import InputSignature

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Functions


def test_statistics_by_hand() -> None:
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    mean, deviation = functional.channel_statistics(x, eps=0.0)
    assert mean.tolist() == [[4.0, 2.0]]
    assert deviation.tolist() == [[pytest.approx(math.sqrt(5)), 0.0]]
    mean, deviation = functional.channel_statistics(torch.tensor([[7.0, -1.0]]), eps=1e-4)
    assert mean.tolist() == [[7.0, -1.0]]
    assert deviation.tolist() == [[pytest.approx(0.01)] * 2]


def test_adaptive_instance_norm_by_hand() -> None:
    teacher = torch.tensor([[[[0.0, 2.0]], [[5.0, 5.0]]]])
    mean, deviation = torch.tensor([[10.0, 3.0]]), torch.tensor([[4.0, 2.0]])
    normed = functional.adaptive_instance_norm(teacher, mean, deviation, eps=1e-9)
    torch.testing.assert_close(normed, torch.tensor([[[[6.0, 14.0]], [[3.0, 3.0]]]]))


def test_adaptive_instance_norm_is_instance_norm_with_the_students_statistics() -> None:
    teacher, student = numbers(4, 3, 5, 2, scale=3.0) + 1, numbers(4, 3, 7, 7, seed=1)
    mean, deviation = functional.channel_statistics(student)
    expected = torch.stack(
        [F.instance_norm(teacher[i : i + 1], weight=deviation[i], bias=mean[i])[0] for i in range(len(teacher))]
    )
    normed = functional.adaptive_instance_norm(teacher, mean, deviation)
    torch.testing.assert_close(normed, expected)
    own = functional.channel_statistics(normed)
    torch.testing.assert_close(own, (mean, deviation), rtol=1e-3, atol=1e-5)


def test_a_map_with_its_own_statistics_stays() -> None:
    x = numbers(3, 4, 2, 2)
    torch.testing.assert_close(functional.adaptive_instance_norm(x, *functional.channel_statistics(x)), x)


def through(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.adaptive_instance_norm(teacher, *functional.channel_statistics(student))


@pytest.mark.parametrize("positions", [(3, 2), (1, 1), ()])
def test_gradients_by_finite_differences(positions: tuple[int, ...]) -> None:
    student, teacher = numbers(2, 3, *positions).double(), numbers(2, 3, 2, 2, seed=1).double()
    student.requires_grad_()
    assert torch.autograd.gradcheck(through, (student, teacher))
    for reduction in ("paper", "code"):
        assert torch.autograd.gradcheck(
            lambda s, reduction=reduction: functional.statistics_matching(s, teacher, reduction), (student,)
        )


MAPS = {
    "vectors": (numbers(4, 3), numbers(4, 3, seed=1)),
    "one position": (numbers(4, 3, 1, 1), numbers(4, 3, 1, 1, seed=1)),
    "one row": (numbers(1, 3, 2, 2), numbers(1, 3, 4, 4, seed=1)),
    "zeros": (torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 4, 4)),
    "student of zeros": (torch.zeros(4, 3, 2, 2), numbers(4, 3, 4, 4)),
    "constant teacher": (numbers(4, 3, 2, 2), torch.ones(4, 3, 4, 4)),
    "±200": (200 * numbers(4, 3, 2, 2).sign(), 200 * numbers(4, 3, 4, 4, seed=1).sign()),
}


@pytest.mark.parametrize("maps", MAPS)
def test_values_and_gradients_are_finite(maps: str) -> None:
    student, teacher = MAPS[maps]
    student = student.clone().requires_grad_()
    normed, matching = through(student, teacher), functional.statistics_matching(student, teacher)
    assert normed.shape == teacher.shape
    (gradient,) = torch.autograd.grad(normed.square().sum() + matching, student)
    assert normed.isfinite().all()
    assert matching.isfinite()
    assert gradient.isfinite().all()


def test_where_the_teacher_does_not_vary_its_map_becomes_the_students_mean() -> None:
    student = numbers(4, 3, 2, 2)
    for teacher in (torch.full((4, 3, 5, 5), 7.0), numbers(4, 3, 1, 1), numbers(4, 3)):
        normed = through(student, teacher)
        mean = student.mean((2, 3))
        expected = mean.expand_as(teacher) if teacher.dim() == 2 else mean[:, :, None, None].expand_as(teacher)
        torch.testing.assert_close(normed, expected)


def test_statistics_of_one_position_are_matched_as_features_are() -> None:
    student, teacher = numbers(4, 3), numbers(4, 3, seed=1)
    for reduction in ("paper", "code"):
        expected = functional.srrl_feature_matching(student, teacher, reduction)
        assert functional.statistics_matching(student, teacher, reduction) == expected


def test_statistics_matching_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 5.0]]]]), torch.tensor([[[[2.0, 2.0, 4.0, 4.0]]]])
    # Means 3 and 3, deviations 2 and 1.
    assert functional.statistics_matching(student, teacher).item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (numbers(3, 4, 2, 2, seed=seed, scale=300).to(dtype) for seed in (0, 1))
    for function in (through, functional.statistics_matching):
        half = function(student, teacher)
        assert half.dtype == torch.float32
        assert torch.equal(half, function(student.float(), teacher.float()))


# Terms

SPECS = {
    "small": MODELS["small_cnn"](widths=(4, 8)),
    "large": MODELS["small_cnn"](widths=(6, 12, 16)),
    "mnist": MODELS["mnist_cnn"](),
    "mlp": MODELS["mlp"](hidden=(7, 5)),
}
IMAGE, SIGNATURE = (1, 10, 10), InputSignature((10, 10, 1))


def model(name: str, outputs: int = 3, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return SPECS[name].build(signature=SIGNATURE, outputs=outputs)


def shapes(name: str, outputs: int = 3) -> Shapes:
    return shapes_of(SPECS[name], signature=SIGNATURE, outputs=outputs)


def heads(student: str = "small", teacher: str = "large", subclasses: int = 1) -> Heads:
    return Heads(3, 1, subclasses, shapes(student), shapes(teacher, 3 * subclasses))


def prepared(spec: SRRLSpec, between: Heads, teacher: Classifier) -> Any:
    torch.manual_seed(3)
    term = spec.build(between)
    term.prepare(Preparation(teacher.eval().requires_grad_(False), lambda rows: rows, LABELS, 0))
    return term


PAIRS = [
    ("small", "large", "stage1"),
    ("small", "large", "conv3"),
    ("large", "small", ("stage3", "stage1")),
    ("mlp", "large", ("hidden1", "conv4")),
    ("small", "mlp", ("stage2", "hidden1")),
    ("mlp", "mlp", "hidden2"),
    ("mnist", "mnist", "conv2"),
    ("small", "mnist", ("conv2", "conv1")),
]


@pytest.mark.parametrize(("student", "teacher", "position"), PAIRS)
@pytest.mark.parametrize(("rows", "form"), [(1, "l2"), (6, "ce"), (6, "kl"), (1, "label")])
def test_gradients_reach_the_student_and_nothing_of_the_teacher(
    student: str, teacher: str, position: Any, rows: int, form: functional.SoftmaxRegression
) -> None:
    spec, between = SRRLSpec(position=position, sr=form, feature_matching=0.0), heads(student, teacher, 2)
    assert spec.problem(between) is None
    taught = model(teacher, 6, seed=1)
    term, learner, x = prepared(spec, between, taught), model(student).eval(), numbers(rows, *IMAGE)
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    loss = term.train()(learner(x), taught(x), LABELS[:rows])
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())
    first = next(learner.parameters())
    assert first.grad is not None
    assert first.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in taught.parameters())
    assert not taught.training
    assert all(torch.equal(before[name], value) for name, value in taught.state_dict().items())


def test_the_teacher_is_no_part_of_the_term() -> None:
    between, taught = heads(), model("large", seed=1)
    fresh = SRRLSpec(position="conv2").build(between)
    term = prepared(SRRLSpec(position="conv2"), between, taught)
    assert term.state_dict().keys() == fresh.state_dict().keys()
    assert {name.split(".")[0] for name in term.state_dict()} == {"connector"}
    assert all(module.training for module in term.train().modules())
    assert not any(module.training for module in taught.modules())


def test_the_regression_is_what_the_teachers_layers_make_of_the_normed_map() -> None:
    between, taught, learner = heads(), model("large", seed=1), model("small").eval()
    term = prepared(SRRLSpec(position="stage2", feature_matching=0.5, softmax_regression=3.0), between, taught).eval()
    x = numbers(6, *IMAGE)
    student, teacher = learner(x), taught(x)
    connected = F.relu(term.connector.norm(term.connector.conv(student.features[1])))
    normed = torch.empty_like(teacher.features[1])
    for row in range(6):
        for channel in range(12):
            own, theirs = connected[row, channel], teacher.features[1][row, channel]
            scale = (own.var(correction=0) + 1e-5).sqrt() / (theirs.var(correction=0) + 1e-5).sqrt()
            normed[row, channel] = (theirs - theirs.mean()) * scale + own.mean()
    last = taught.stages[2](F.max_pool2d(normed, 2)).mean((2, 3))
    regression = (taught.classifier(last) - teacher.logits).square().sum(1).mean()
    deviations = [(m.var((2, 3), correction=0) + 1e-5).sqrt() for m in (connected, teacher.features[1])]
    means = [m.mean((2, 3)) for m in (connected, teacher.features[1])]
    matching = sum((a - b).square().sum(1).mean() for a, b in (means, deviations))
    torch.testing.assert_close(term(student, teacher, LABELS), 0.5 * matching + 3.0 * regression)


@pytest.mark.parametrize("form", ["l2", "ce", "kl", "label"])
@pytest.mark.parametrize("reduction", ["paper", "code"])
def test_at_the_last_map_of_a_pooling_teacher_the_regression_is_that_of_the_last_position(
    form: functional.SoftmaxRegression, reduction: functional.SRRLReduction
) -> None:
    between, taught, learner = heads(subclasses=2), model("large", 6, seed=1), model("small").eval()
    options: dict[str, Any] = {"sr": form, "tau": 2.0, "reduction": reduction, "feature_matching": 0.0}
    last = prepared(SRRLSpec(**options), between, taught)
    earlier = prepared(SRRLSpec(position=("stage2", "stage3"), **options), between, taught)
    earlier.connector.load_state_dict(last.connector.state_dict())
    x = numbers(6, *IMAGE)
    student, teacher = learner(x), taught(x)
    torch.testing.assert_close(earlier(student, teacher, LABELS), last(student, teacher, LABELS))


def test_a_student_with_the_teachers_map_pays_nothing() -> None:
    taught = model("large", seed=1)
    term = prepared(SRRLSpec(position="conv3"), heads("large", "large"), taught)
    term.connector = torch.nn.Identity()
    output = taught(numbers(6, *IMAGE))
    assert term(output, output, LABELS).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("position", "names"),
    [
        ("conv2", ("stage1", "stage1")),
        ("stage2", ("stage2", "stage2")),
        (("conv2", "conv4"), ("stage1", "stage3")),
        (("stage2", "conv3"), ("stage2", "stage2")),
    ],
)
def test_positions_are_names_or_the_papers(position: Any, names: tuple[str, str]) -> None:
    term = SRRLSpec(position=position).build(heads())
    assert isinstance(term, EarlierSRRL)
    assert (f"stage{term.mine + 1}", f"stage{term.yours + 1}") == names


def test_a_models_own_name_comes_before_the_papers() -> None:
    term = SRRLSpec(position="conv2").build(heads("small", "mnist"))
    assert isinstance(term, EarlierSRRL)
    assert (term.mine, term.yours) == (0, 1)


@pytest.mark.parametrize(
    ("student", "teacher", "position", "message"),
    [
        ("small", "large", "conv4", "the student has no feature map 'conv4'; it has stage1, stage2. The paper calls"),
        ("small", "large", "stage9", "the student has no feature map 'stage9'; it has stage1, stage2."),
        ("small", "large", ("stage1", "stem"), "the teacher has no feature map 'stem'; it has stage1, stage2, stage3."),
        ("small", "large", "stag1", "Did you mean 'stage1'?"),
        ("small", "mnist", "conv3", "the teacher has no feature map 'conv3'; it has conv1, conv2."),
        ("mlp", "large", "conv2", "the student has no feature map 'conv2'; it has hidden1, hidden2."),
    ],
)
def test_a_position_that_a_model_does_not_have_is_named(
    student: str, teacher: str, position: Any, message: str
) -> None:
    problem = SRRLSpec(position=position).problem(heads(student, teacher)) or ""
    assert message in problem
    assert problem.endswith("Write last, a name that both have, or a pair, the student's first.")


def test_models_without_maps_have_the_last_position_only() -> None:
    between = Heads(3, 1, 1, Shapes(8, (), ()), shapes("large"))
    assert SRRLSpec().problem(between) is None
    assert "position can only be last" in (SRRLSpec(position="conv2").problem(between) or "")


def test_shapes_that_are_not_known_yet_are_no_problem() -> None:
    assert SRRLSpec(position="conv9").problem(Heads(3, 1, 1)) is None
    with pytest.raises(ValueError, match="shapes of the student's outputs are not known"):
        SRRLSpec(position="conv2").build(Heads(3, 1, 1))


def test_what_is_read_of_the_teacher_depends_on_the_position() -> None:
    assert SRRLSpec().needs == {"embedding"}
    assert SRRLSpec(position="conv2").needs == {"features", "logits"}
    specs = (CrossEntropySpec(), SRRLSpec(), SRRLSpec(position="conv2"))
    objective = Objective(specs, heads())
    assert objective.needs == {"embedding", "features", "logits"}
    assert objective.names == ("ce", "srrl_1", "srrl_2")
    assert [type(term) for term in objective.in_order[1:]] == [SRRL, EarlierSRRL]


def test_a_term_without_a_teacher_says_so() -> None:
    x = numbers(2, *IMAGE)
    with pytest.raises(RuntimeError, match="has no teacher yet"):
        SRRLSpec(position="conv2").build(heads())(model("small")(x), model("large")(x), LABELS[:2])


@pytest.mark.parametrize("position", [3, None, ("a",), ("a", "b", "c")])
def test_positions_of_another_form_are_refused(position: Any) -> None:
    with pytest.raises(ValidationError):
        SRRLSpec(position=position)


# Training


@pytest.mark.parametrize(
    "objective",
    [
        ({"srrl": {"position": "conv2", "reduction": "code"}},),
        ({"srrl": {"position": "stage2", "sr": "kl", "tau": 4.0}},),
        ({"srrl": {"reduction": "code"}}, {"srrl": {"position": ("stage2", "conv4"), "reduction": "code"}}),
    ],
    ids=str,
)
def test_a_run_learns_and_an_interrupted_one_ends_with_the_same_bits(
    tmp_path: Path, small_stage: Any, objective: tuple[Any, ...]
) -> None:
    whole = small_stage.trainer(("ce", *objective), tmp_path / "whole")
    initial = {name: value.clone() for name, value in whole.objective.named_parameters()}
    trained = whole.run()
    assert initial
    assert all(not torch.equal(initial[key], value) for key, value in whole.objective.named_parameters())
    for name in whole.objective.names[1:]:
        assert trained.records[1]["losses"][name] < trained.records[0]["losses"][name]
    assert trained.model.state_dict().keys() == small_stage.plan(("ce",)).build_model().state_dict().keys()
    resumed = small_stage.cut_and_resumed(("ce", *objective), tmp_path / "cut")
    torch.testing.assert_close(resumed, small_stage.state(whole, trained), rtol=0, atol=0)


def test_a_run_in_bfloat16_stays_finite(tmp_path: Path, small_stage: Any) -> None:
    run = small_stage.trainer(("ce", {"srrl": {"position": "conv2", "reduction": "code"}}), tmp_path, precision="bf16")
    assert math.isfinite(run.run().records[-1]["losses"]["total"])


TABLE_10 = """\
name: table10
data: {source: digits}
train: {epochs: 2, batch_size: 256, optimizer: {adam: {lr: 2e-3}}}
stages:
  teacher: {model: {small_cnn: {widths: [8, 16]}}, objective: ce}
  student:
    model: {small_cnn: {widths: [4, 8]}}
    teacher: teacher
    objective:
      - {srrl: {reduction: code, weight: 2.0}}
      - {kd: {tau: 4.0, kl_weight: 0.9, ce_weight: 0.1}}
      - {at: {variant: code, weight: 1000.0}}
      - {srrl: {position: conv2, reduction: code, weight: 0.5}}
"""


def test_srrl_trains_together_with_kd_and_at(empty_project: Any) -> None:
    """Yang et al. 2021 (SRRL), table 10, which adds KD and attention transfer to their losses."""
    outcome, _ = empty_project.run(empty_project.write(TABLE_10, "table10.yaml"))
    assert outcome is not None
    (log,) = (path for path in empty_project.runs.rglob("log.jsonl") if '"stage": "student"' in path.read_text())
    records = [json.loads(line) for line in log.read_text().splitlines()]
    weights = {"srrl_1": 2.0, "kd": 1.0, "at": 1000.0, "srrl_2": 0.5}
    for record in records:
        losses = dict(record["losses"])
        total = losses.pop("total")
        assert list(losses) == list(weights)
        assert all(value > 0 for value in losses.values())
        assert total == pytest.approx(sum(weights[name] * value for name, value in losses.items()), rel=1e-5)
    assert all(records[1]["losses"][name] < records[0]["losses"][name] for name in ("total", *weights))


def test_a_position_is_checked_with_the_recipe(empty_project: Any) -> None:
    path = empty_project.write(TABLE_10.replace("position: conv2", "position: conv4"), "table10.yaml")
    result = empty_project.invoke("check", path)
    assert result.exit_code == 2
    assert "stages.student.objective[3]: srrl: position: the student has no feature map 'conv4'" in result.stderr


def test_outputs_of_another_kind_are_left_alone() -> None:
    """The last position reads neither maps nor logits of the teacher, which are not computed for it."""
    term = prepared(SRRLSpec(), heads(), model("large", seed=1))
    x = numbers(6, *IMAGE)
    taught = model("large", seed=1).eval()(x)
    student = model("small").eval()(x)
    whole = term.eval()(student, taught, LABELS)
    assert term(student, Output(taught.logits * math.nan, taught.embedding, ()), LABELS) == whole
