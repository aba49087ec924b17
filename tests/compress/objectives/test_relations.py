"""RKD, similarity preservation, correlation congruence and PKT: values by hand, hard batches, training runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.models import Output, Shapes
from compress.objectives import OBJECTIVES, Heads, functional
from compress.objectives.functional.directions import unit

LABELS = torch.zeros(6, dtype=torch.long)
STUDENT = Shapes(4, ((4, 8, 8), (4, 4, 4)), ("stage1", "stage2"))
TEACHER = Shapes(5, ((6, 8, 8), (5, 2, 2)), ("stage1", "stage2"))
BETWEEN = Heads(3, 1, 1, STUDENT, TEACHER)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses_of(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Return every loss of this file between embeddings (N, D) of one width."""
    return {
        "rkd": functional.relational(student, teacher),
        "rkd_distance": functional.relational(student, teacher, angle=0.0),
        "rkd_angle": functional.relational(student, teacher, distance=0.0),
        "sp_l2": functional.similarity_preserving(student, teacher),
        "sp_l1": functional.similarity_preserving(student, teacher, "l1"),
        "cc_gaussian": functional.correlation_congruence(student, teacher),
        "cc_bilinear": functional.correlation_congruence(student, teacher, kernel="bilinear"),
        "cc_torchdistill": functional.correlation_congruence(student, teacher, "torchdistill"),
        "cc_repdistiller": functional.correlation_congruence(student, teacher, "repdistiller"),
        "pkt": functional.probabilistic_transfer(student, teacher),
    }


NAMES = tuple(losses_of(numbers(2, 2), numbers(2, 2)))
ZERO_ROWS = numbers(4, 3).masked_fill(torch.tensor([[True], [False], [True], [False]]), 0.0)
BATCHES = {
    "one_row": (numbers(1, 3), numbers(1, 3, seed=1)),
    "one_row_of_zeros": (torch.zeros(1, 3), torch.zeros(1, 3)),
    "zeros": (torch.zeros(4, 3), numbers(4, 3, seed=1)),
    "rows_of_zeros": (ZERO_ROWS, numbers(4, 3, seed=1)),
    "teacher_of_zeros": (numbers(4, 3), torch.zeros(4, 3)),
    "equal": (numbers(4, 3), numbers(4, 3)),
    "duplicates": (numbers(1, 3).tile(4, 1), numbers(4, 3, seed=1)),
    "both_duplicates": (numbers(1, 3).tile(4, 1), numbers(1, 3, seed=1).tile(4, 1)),
    "opposite": (numbers(1, 3) * torch.tensor([[1.0], [-1.0]]), numbers(2, 3, seed=1)),
    "large": (numbers(4, 3).sign() * 200, -numbers(4, 3, seed=1).sign() * 200),
    "tiny": (numbers(4, 3) * 1e-20, numbers(4, 3, seed=1)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", BATCHES)
def test_loss_and_gradient_are_finite_and_moderate(name: str, batch: str) -> None:
    student, teacher = BATCHES[batch]
    student = student.clone().requires_grad_()
    loss = losses_of(student, teacher)[name]
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if batch not in ("large", "tiny"):
        assert gradient.abs().max() < 1e4  # without the guard 1e12


@pytest.mark.parametrize("name", NAMES)
def test_one_example_has_no_relations(name: str) -> None:
    loss = losses_of(*BATCHES["one_row"])[name]
    if not name.startswith("cc_") or name == "cc_repdistiller":  # the others compare an example with itself
        assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_equal_inputs_are_at_distance_zero_with_no_gradient(name: str) -> None:
    x = numbers(5, 3).requires_grad_()
    loss = losses_of(x, x.detach())[name]
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (numbers(5, 3, seed=seed, scale=300).to(dtype) for seed in (0, 1))
    half, full = losses_of(student, teacher)[name], losses_of(student.float(), teacher.float())[name]
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert torch.equal(half, full)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cc_repdistiller"])
def test_the_order_of_examples_does_not_matter(name: str) -> None:
    student, teacher, order = numbers(5, 3), numbers(5, 3, seed=1), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(losses_of(student[order], teacher[order])[name], losses_of(student, teacher)[name])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cc_repdistiller"])
def test_a_rotation_does_not_matter(name: str) -> None:
    student, teacher = numbers(5, 3).double(), numbers(5, 3, seed=1).double()
    rotation = torch.linalg.qr(numbers(3, 3, seed=2).double()).Q
    torch.testing.assert_close(losses_of(student @ rotation, teacher)[name], losses_of(student, teacher)[name])


@pytest.mark.parametrize("name", ["rkd", "sp_l2", "sp_l1", "pkt"])
def test_a_scale_does_not_matter(name: str) -> None:
    student, teacher = numbers(5, 3).double(), numbers(5, 3, seed=1).double()
    scaled = losses_of(7 * student, teacher)[name]
    torch.testing.assert_close(scaled, losses_of(student, teacher)[name], rtol=1e-5, atol=1e-9)


def test_rkd_does_not_see_a_shift() -> None:
    student, teacher = numbers(5, 3).double(), numbers(5, 3, seed=1).double()
    torch.testing.assert_close(losses_of(student + 3, teacher)["rkd"], losses_of(student, teacher)["rkd"])


def test_rkd_distance_by_hand() -> None:
    student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    # Divided by their means, 4/3 and 2, the distances are (0.75, 1.5, 0.75) and (0, 1.5, 1.5).
    expected = 2 * (0.5 * 0.75**2 + 0 + 0.5 * 0.75**2) / 9
    loss = functional.relational(student, teacher, distance=1.0, angle=0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_rkd_angle_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # Cosines at each example between the two others: 0, √½, √½ and 1, -1, 1. Each stands twice among 27 entries.
    root = math.sqrt(0.5)
    huber = [0.5, 1 + root - 0.5, 0.5 * (1 - root) ** 2]
    loss = functional.relational(student, teacher, distance=0.0, angle=1.0)
    assert loss.item() == pytest.approx(2 * sum(huber) / 27, rel=1e-5)


def test_similarity_preserving_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Products 9, 12 and 12, 16: rows (0.6, 0.8) of L2 norm 1, (3/7, 4/7) of L1 norm 1.
    assert functional.similarity_preserving(student, teacher).item() == pytest.approx(
        (0.4**2 + 0.8**2 + 0.6**2 + 0.2**2) / 4
    )
    l1 = functional.similarity_preserving(student, teacher, "l1").item()
    assert l1 == pytest.approx(((4 / 7) ** 2 + (4 / 7) ** 2 + (3 / 7) ** 2 + (3 / 7) ** 2) / 4)


def test_correlation_congruence_by_hand() -> None:
    student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    bilinear = functional.correlation_congruence(student, teacher, kernel="bilinear")
    assert bilinear.item() == pytest.approx(2 / 4)
    norm = functional.correlation_congruence(student, teacher, "torchdistill", kernel="bilinear")
    assert norm.item() == pytest.approx(math.sqrt(2) / 4)
    # The kernel at x·y = 1, without its constant: exp(-1) (1 + 1/2 + 1/6) at gamma 0.5, order 3.
    gaussian = functional.correlation_congruence(student, teacher, gamma=0.5, order=3)
    assert gaussian.item() == pytest.approx(2 * (math.exp(-1) * (1 + 1 / 2 + 1 / 6)) ** 2 / 4, rel=1e-5)
    apart = functional.correlation_congruence(
        torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.zeros(2, 2), "repdistiller"
    )
    assert apart.item() == 1 * 3 + 2 * 1


def test_the_gaussian_series_tends_to_the_gaussian_kernel() -> None:
    student, teacher = (unit(numbers(4, 3, seed=seed).double(), 1) for seed in (0, 1))
    own, taught = (torch.exp(-0.4 * torch.cdist(x, x).square()) for x in (student, teacher))
    series = functional.correlation_congruence(student, teacher, gamma=0.4, order=20)
    torch.testing.assert_close(series, (own - taught).square().mean())


def test_pkt_by_hand() -> None:
    student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    # Rows (1, 1/2) and (1, 0), divided by their sums: (2/3, 1/3) and (1, 0).
    loss = functional.probabilistic_transfer(student, teacher)
    assert loss.item() == pytest.approx(2 * math.log(3 / 2) / 4, rel=1e-4)


@pytest.mark.parametrize("guard", [True, False])
def test_a_guard_changes_the_gradient_of_rows_without_direction_only(guard: bool) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    directions = unit(x, 1, guard=guard)
    assert directions.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    (gradient,) = torch.autograd.grad(directions[:, 0].sum(), x)
    assert gradient[0].tolist() == pytest.approx([0.128, -0.096])
    assert gradient[1].tolist() == ([0.0, 0.0] if guard else [pytest.approx(1e12), 0.0])


# Terms


def outputs(shapes: Shapes, seed: int = 0) -> Output:
    features = tuple(numbers(6, *shape, seed=seed + i) for i, shape in enumerate(shapes.features))
    return Output(numbers(6, 3, seed=seed + 9), numbers(6, shapes.embedding, seed=seed + 8), features)


@pytest.mark.parametrize(
    ("kind", "options", "function", "needs"),
    [
        ("rkd", {"distance": 2.0, "angle": 3.0}, functional.relational, "embedding"),
        ("pkt", {}, functional.probabilistic_transfer, "embedding"),
        ("cc", {"kernel": "bilinear"}, functional.correlation_congruence, "embedding"),
        ("sp", {"rows": "l1"}, functional.similarity_preserving, "features"),
    ],
)
def test_a_term_is_its_function_of_what_it_reads(kind: str, options: dict[str, Any], function: Any, needs: str) -> None:
    spec = OBJECTIVES[kind](**options)
    assert spec.needs == {needs}
    assert spec.problem(BETWEEN) is None
    assert spec.problem(Heads(3, 2, 5)) is None
    student, teacher = outputs(STUDENT), outputs(TEACHER, seed=20)
    read = [side.embedding if needs == "embedding" else side.features[-1] for side in (student, teacher)]
    torch.testing.assert_close(spec.build(BETWEEN)(student, teacher, LABELS), function(*read, **options))


def test_similarity_is_summed_over_the_layers() -> None:
    student, teacher = outputs(STUDENT), outputs(TEACHER, seed=20)
    values = [
        OBJECTIVES["sp"](layers=layers).build(BETWEEN)(student, teacher, LABELS)
        for layers in ("all", (("stage1", "stage1"),), "last")
    ]
    torch.testing.assert_close(values[0], values[1] + values[2])


def test_the_gaussian_correlation_reads_directions() -> None:
    term = OBJECTIVES["cc"]().build(BETWEEN)
    student, teacher = outputs(STUDENT), outputs(TEACHER, seed=20)
    longer = student._replace(embedding=7 * student.embedding)
    torch.testing.assert_close(term(longer, teacher, LABELS), term(student, teacher, LABELS))


def test_only_repdistillers_correlation_has_connectors() -> None:
    shapes = {
        variant: [tuple(p.shape) for p in OBJECTIVES["cc"](variant=variant, width=7).build(BETWEEN).parameters()]
        for variant in ("paper", "torchdistill", "repdistiller")
    }
    assert shapes == {"paper": [], "torchdistill": [], "repdistiller": [(7, 4), (7,), (7, 5), (7,)]}


def test_rkd_without_weights_and_sp_without_its_map_are_refused() -> None:
    assert "nothing is left" in (OBJECTIVES["rkd"](distance=0.0, angle=0.0).problem(BETWEEN) or "")
    message = OBJECTIVES["sp"](layers=(("stage3", "stage1"),)).problem(BETWEEN)
    assert "the student has no feature map 'stage3'; it has stage1, stage2" in (message or "")
