"""report.html: one file that needs nothing else, says what was run, and shows no name as markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress import figures
from compress.pipeline import plans_of

VOID = {"meta", "link", "img", "br", "hr", "input"}
REFERENCES = {"src", "href", "xlink:href", "data", "action", "poster", "srcset", "background"}
SEVERAL = """\
name: tiny
data: {source: {folder: {path: pets}}}
train: {epochs: 1, batch_size: 8}
stages:
  teacher: {model: {mlp: {hidden: [8]}}, subclasses: 2, objective: [ce, subclass_auxiliary]}
"""


class Page(HTMLParser):
    """Reads a page and keeps what tests ask for; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self.titles: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [(name, value or "") for name, value in attributes if name in REFERENCES]
        assert len({name for name, _ in attributes}) == len(attributes), (tag, attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [(name, value or "") for name, value in attributes if name in REFERENCES]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] == "h3":
            self.titles.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def source(finished: Any) -> str:
    return (finished.results / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def made(project: Any, text: str, **options: Any) -> Page:
    outcome, _ = project.run(project.write(text), **options)
    assert outcome.report == project.results / "report.html"
    return Page(outcome.report.read_text(encoding="utf-8"))


def assert_self_contained(source: str, page: Page) -> None:
    assert all(value.startswith(("#", "data:")) for _, value in page.references), page.references
    assert not {"script", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in source
    assert all(part.startswith(("#", "data:")) for part in re.findall(r"url\(['\"]?([^)]*)", source))
    # Names of XML dialects are no addresses: nothing fetches them.
    without_names = re.sub(r"""xmlns(:\w+)?=["'][^"']*["']|<!DOCTYPE[^>]*>""", "", source)
    assert not re.search(r"https?://", without_names)


# The finished run


def test_the_report_is_one_file_that_works_offline(source: str, page: Page) -> None:
    assert source.lower().startswith("<!doctype html>")
    assert_self_contained(source, page)
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("title") == 1


def test_every_stage_and_file_is_a_row_of_the_table(finished: Any, page: Page) -> None:
    rows = json.loads((finished.results / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "student", "student · onnx"]
    table = {cells[0]: cells for cells in page.cells}
    for row in rows:
        cells = table[row["name"]]
        assert f"{row['parameters']:,}" in cells
        assert f"{100 * row['mean']:.2f} %" in cells
        assert f"{100 * row['low']:.2f} – {100 * row['high']:.2f}" in cells
    assert "passed" in table["student · onnx"]
    assert any("(quick)" in cell for cell in table["student · onnx"])


def test_the_plots_that_the_issue_names_are_there(page: Page) -> None:
    for heading in ("Accuracy against latency", "Latency", "Training", "Confusion, onnx"):
        assert heading in page.headings
    assert page.tags.count("svg") >= 5
    assert "359 test rows through the exported onnx file; every prediction equals torch's." in page.text


def test_the_gallery_shows_student_and_teacher_with_hidden_labels(page: Page) -> None:
    assert "What the subclasses of student found" in page.headings
    assert "What the subclasses of teacher found" in page.headings
    assert "0/2/4/6/8 · 1" in page.texts
    assert "Percent of each hidden label's rows that land in each invented subclass." in page.texts
    images = [value for name, value in page.references if name == "src"]
    assert 2 <= len(images) <= 8
    assert all(value.startswith("data:image/png;base64,") for value in images)


def test_the_analysis_has_every_stage_and_the_plots_of_two(finished: Any, page: Page) -> None:
    assert "Analysis" in page.headings
    table = {cells[0]: [" ".join(cell.split()) for cell in cells[1:]] for cells in page.cells}
    assert table["measure"][:2] == ["teacher", "student"]
    stages = json.loads((finished.results / "analysis.json").read_text())["stages"]
    values = [stages[name]["test"]["values"] for name in ("teacher", "student")]
    errors = [f"{100 * value['expected_calibration_error']:.2f}" for value in values]
    assert table["expected calibration error"][:3] == [*errors, "%"]
    assert table["KL(teacher ‖ student)"][:2] == ["–", f"{values[1]['teacher_kl']:.3f}"]
    assert table["accuracy, best permutation"][1] == f"{100 * values[1]['permutation_accuracy']:.2f}"
    assert page.titles == [
        "Reliability", "Logits", "Embeddings by class", "Embeddings by hidden label", "Plane through templates",
    ]  # fmt: skip
    for name, error in zip(("teacher", "student"), errors, strict=True):
        assert f"{name}: ECE {error} %" in page.text
    # Five hidden labels a class and two subclasses: the formula has no bits, and so no note.
    assert "effective label bits" not in table


def test_the_report_says_where_it_comes_from(finished: Any, page: Page) -> None:
    (plan,) = plans_of(finished.recipe, None)
    for value in (*(stage.key for stage in plan.stages), plan.key, plan.fingerprint):
        assert value in page.texts
    assert "train 1,294, validation 144, test 359" in page.texts
    assert any(text.startswith("name: tiny\n") and "subclass_auxiliary" in text for text in page.texts)


def test_report_json_is_the_table(finished: Any) -> None:
    report = json.loads((finished.results / "report.json").read_text())
    assert (report["format_version"], report["recipe"]) == (1, "tiny")
    assert len(report["rows"]) == 3
    bench = json.loads((finished.results / "bench.onnx.local.json").read_text())
    export = report["rows"][2]
    percentiles = bench["latency"]["percentiles"]
    assert export["p50_ms"] == percentiles["p50"]["measured_ms"]
    assert export["p90_ms"] == percentiles["p90"]["measured_ms"]
    assert export["size_bytes"] == finished.bundle.joinpath("model.onnx").stat().st_size


def test_the_same_results_give_the_same_page(project: Any, source: str) -> None:
    outcome, _ = project.run()
    assert outcome.report.read_text(encoding="utf-8") == source


# Other recipes


def test_energy_stands_in_the_table_by_its_counter(project: Any) -> None:
    file = project.results / "bench.onnx.local.json"
    counted = {"counter": "RAPL <package-0>", "joules": 1.5, "calls": 1000, "mj_per_call": 1.5}
    why = "UNSTABLE: the board was held back: <heat>"
    file.write_text(json.dumps({**json.loads(file.read_text()), "energy": [counted], "notes": [why]}))
    assert project.invoke("report", project.recipe).exit_code == 0
    shown = Page((project.results / "report.html").read_text(encoding="utf-8"))
    column = shown.cells[0].index("energyof a call")
    assert [cells[column].strip() for cells in shown.cells[1:4]] == ["", "", "1.50 mJ"]
    assert any("Energy by RAPL <package-0>: what each counter counted" in text for text in shown.texts)
    assert {"1.5 mJ a call by RAPL <package-0>, with all else that ran", why} <= set(shown.texts)


def test_without_export_and_subclasses_the_rest_is_shown(empty_project: Any, untrained_text: str) -> None:
    page = made(empty_project, untrained_text)
    assert "Training" in page.headings
    for heading in page.headings:
        assert "subclasses" not in heading
        assert "Confusion" not in heading
        assert "atency" not in heading
    assert [cells[0] for cells in page.cells][1:3] == ["plain", "measure"]
    assert {"Reliability", "Logits", "Embeddings by class", "Plane through templates"} <= set(page.titles)
    assert "Embeddings by hidden label" not in page.titles
    assert not any("KL(" in cells[0] for cells in page.cells)
    assert "Machine that the latency was measured on" not in page.texts
    assert not [value for name, value in page.references if name == "src"]


def test_without_validation_rows_and_with_several_seeds(empty_project: Any, untrained_text: str) -> None:
    text = untrained_text.replace("digits}", "digits, validation: 0}").replace("data:", "seeds: [3, 4]\ndata:")
    page = made(empty_project, text)
    assert "Mean ± sample standard deviation over seeds 3, 4" in page.text
    assert "seed-3" in page.text
    assert any("±" in cell for cell in page.cells[1])


def test_subclasses_without_hidden_labels_have_a_gallery_without_agreement(
    empty_project: Any, image_folder: Callable[..., Path]
) -> None:
    image_folder(empty_project.folder / "pets")
    page = made(empty_project, SEVERAL, data_root=empty_project.folder)
    assert "What the subclasses of teacher found" in page.headings
    assert "cat · 1" in page.texts
    assert not any("hidden label" in text for text in page.texts)
    assert not any("of its rows" in text for text in page.texts)


def test_no_name_becomes_markup(empty_project: Any, image_folder: Callable[..., Path]) -> None:
    names = ("<b>bold", "a&amp;b \"quoted\" 'too'", "$\\undefined{x}$")
    image_folder(empty_project.folder / "pets", names)
    description = "<script>alert(1)</script> & {{ 7 * 7 }} </title>"
    text = SEVERAL.replace("data:", f"description: '{description}'\ndata:", 1)
    page = made(empty_project, text, data_root=empty_project.folder)
    assert description in page.texts
    assert {"script", "b"} & set(page.tags) <= {"b"}
    for name in names:
        assert f"{name} · 1" in page.texts
    assert_self_contained((empty_project.results / "report.html").read_text(encoding="utf-8"), page)


def test_published_numbers_stand_beside_ours(empty_project: Any, untrained_text: str) -> None:
    expect = "expect: {test_accuracy_percent: 99.5, within: 0.1, source: 'table <1>'}\n"
    page = made(empty_project, untrained_text + expect)
    (published,) = [" ".join(cell.split()) for cell in page.cells[1] if "ours" in cell]
    assert published.startswith("accuracy % 99.50, ours ")
    assert published.endswith(": missed")
    html = (empty_project.results / "report.html").read_text(encoding="utf-8")
    assert 'title="within 0.1; table &lt;1&gt;"' in html


@pytest.mark.parametrize("names", [("<i>a", "b & c"), ("$\\undefined{x}$", "$5 to $10"), ("a_b", "c^d")])
def test_class_names_are_drawn_as_they_are_written(names: tuple[str, ...]) -> None:
    for svg in (
        figures.confusion_matrix(np.array([[3, 1], [0, 4]]), names),
        figures.subclass_agreement(np.array([[3, 1], [0, 4]]), [f"{name} · 1" for name in names], names),
    ):
        page = Page(svg)
        drawn = {text.strip() for text in page.texts}
        assert all(name in drawn for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("sixteen letters.", "sixteen letters."),
        ("airplane/bird/deer", "airplane/bird/d…"),
        ("airplane/bird/deer · 3", "airplane/bird/d… · 3"),
        ("cat · 12", "cat · 12"),
    ],
)
def test_long_names_leave_room_for_the_plot_and_keep_their_number(name: str, expected: str) -> None:
    assert figures.short(name) == expected


def test_a_confusion_matrix_of_joined_classes_is_named_in_short() -> None:
    svg = figures.confusion_matrix(np.eye(2, dtype=int), ("airplane/bird/deer/frog/ship", "automobile/cat/dog"))
    assert "airplane/bird/d…" in svg
    assert "airplane/bird/deer" not in svg
