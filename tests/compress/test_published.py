"""Published numbers: how they are written, whose they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.published import Cell, ExpectSpec, PublishedSpec
from compress.variants import load_variants
from runtime.errors import RecipeError

TEXT = """\
name: tiny
data: {source: digits}
stages:
  teacher: {model: {mlp: {hidden: [16]}}, objective: ce}
  student: {model: {mlp: {hidden: [8]}}, teacher: teacher, objective: kl}
export: {stage: student}
"""


def load(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("written", "mean", "deviation"),
    [(91, 91.0, None), (91.04, 91.04, None), ("91.04 ± 0.11", 91.04, 0.11), ("91.04+-0.11", 91.04, 0.11)],
)
def test_a_number_may_have_its_deviation(written: float | str, mean: float, deviation: float | None) -> None:
    expect = ExpectSpec.model_validate({"test_accuracy_percent": written, "within": 1.0, "source": "table 1"})
    assert expect.test_accuracy_percent == Cell(mean=mean, deviation=deviation)
    again = expect.model_dump(mode="json")["test_accuracy_percent"]
    assert ExpectSpec.model_validate({**expect.model_dump(mode="json"), "test_accuracy_percent": again}) == expect


def test_a_table_gives_each_stage_its_own_and_a_number_is_the_deployed_stages() -> None:
    rest = {"no_worse_by": 0.5, "source": "table 1"}
    table = PublishedSpec.model_validate({"test_error_percent": {"teacher": 5.1, "student": "6.2 ± 0.1"}, **rest})
    assert table.by_stage("student") == {
        "teacher": ExpectSpec.model_validate({"test_error_percent": 5.1, **rest}),
        "student": ExpectSpec.model_validate({"test_error_percent": "6.2 ± 0.1", **rest}),
    }
    single = PublishedSpec.model_validate({"test_error_percent": 6.2, **rest})
    assert single.by_stage("student") == {"student": ExpectSpec.model_validate({"test_error_percent": 6.2, **rest})}


def test_rows_of_a_sweep_have_labels_and_published_numbers_of_their_own(tmp_path: Path) -> None:
    text = (
        TEXT
        + """\
seeds: [0, 1]
expect: {source: "table 1", within: 1, test_accuracy_percent: {teacher: 99, student: "95.5 ± 0.2"}}
sweep:
  - {label: as written}
  - label: narrow
    stages.student.model.mlp.hidden: [4]
    expect.test_accuracy_percent: {student: 90}
"""
    )
    variants = load_variants(load(tmp_path, text))
    assert [(variant.label, variant.seed, variant.folder) for variant in variants] == [
        ("as written", 0, "variant-1/seed-0"),
        ("as written", 1, "variant-1/seed-1"),
        ("narrow", 0, "variant-2/seed-0"),
        ("narrow", 1, "variant-2/seed-1"),
    ]
    written, narrow = variants[0].recipe.expectations(), variants[2].recipe.expectations()
    assert {name: str(each.test_accuracy_percent) for name, each in written.items()} == {
        "teacher": "99",
        "student": "95.5 ± 0.2",
    }
    assert {name: str(each.test_accuracy_percent) for name, each in narrow.items()} == {"student": "90"}
    assert variants[2].recipe.stages["student"].model.hidden == (4,)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            "expect: {source: s, within: 1, test_accuracy_percent: {studnt: 90}}",
            ["line 7: expect: unknown stage 'studnt'", "Did you mean 'student'?"],
        ),
        (
            "expect: {source: s, within: 1, test_accuracy_percent: {student: about 90}}",
            ["line 7: expect.test_accuracy_percent.student: came 'about 90', expected a number or text such as"],
        ),
        (
            "expect: {source: s, within: 1, test_accuracy_percent: 190}",
            ["expect.test_accuracy_percent: came 190, expected at most 100"],
        ),
        ("expect: {source: s, within: 1}", ["exactly one of test_error_percent and test_accuracy_percent"]),
        (
            "expect: {source: s, within: 1, no_worse_by: 1, test_error_percent: 3}",
            ["exactly one of within and no_worse_by"],
        ),
        (
            "sweep:\n  - {label: 3}\n  - {stages.studnt.model: mlp}\n  - {seed: 4}",
            ["line 8: sweep[0].label: expected text", "line 9: sweep[1].stages.studnt.model: 'stages.studnt.model' is "
             "not a place in this recipe", "line 10: sweep[2].seed: 'seed' cannot be swept"],
        ),
        ("sweep:\n  - {stages.student.model: mpl}", ["line 8: stages.student.model: unknown model 'mpl'"]),
        ("sweep: []", ["line 7: sweep: is empty"]),
        ("sweep: 3", ["line 7: sweep: came 3, expected a mapping"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, more: str, expected: list[str]) -> None:
    path = load(tmp_path, TEXT + more + "\n")
    with pytest.raises(RecipeError) as caught:
        load_variants(path)
    for part in expected:
        assert part in str(caught.value)
