from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compress import yaml_document
from compress.yaml_document import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, Document, Problem, read_document


def read(text: str) -> Any:
    document = read_document(text)
    assert document.problems == ()
    return document.value


def problem_of(text: str) -> Problem:
    (problem,) = read_document(text).problems
    return problem


# Scalars


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+1.5e+2", 150.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("0.1", 0.1),
        ("-0.0", -0.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("+.INF", math.inf),
        ("0", 0),
        ("-17", -17),
        ("+3", 3),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("9" * MAX_DIGITS, int("9" * MAX_DIGITS)),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_of_the_core_schema(written: str, expected: Any) -> None:
    value = read(f"key: {written}")["key"]
    assert value == expected
    assert type(value) is type(expected)
    assert read(f"- {written}") == (expected,)


@pytest.mark.parametrize("written", [".nan", ".NaN", ".NAN"])
def test_not_a_number(written: str) -> None:
    assert math.isnan(read(written))


@pytest.mark.parametrize(
    "written",
    [
        *("no", "No", "NO", "yes", "on", "off", "y", "n", "tRue", "nULL", "none", "nan", "inf", "-inf"),
        *(
            "1_000",
            "0b11",
            "0o8",
            "0xG",
            "0o",
            "0x",
            "-0o7",
            "-0x1",
            "1e",
            "e3",
            ".",
            "+",
            "1.2.3",
            "1:30",
            "1,5",
        ),
        *("2001-12-14", "2001-12-14 21:59:43", "=", "<<", "3x3", "--5", ".e3", "a b", "ü"),
    ],
)
def test_everything_else_is_text(written: str) -> None:
    assert read(f"key: {written}") == {"key": written}


@pytest.mark.parametrize("written", ["1", "1e-3", "true", "null", "~", ".inf", ""])
def test_quoted_scalars_are_text(written: str) -> None:
    assert read(f"- '{written}'\n- \"{written}\"") == (written, written)


def test_block_text() -> None:
    assert read("a: |\n  1\n  2\nb: >-\n  x\n  y\n") == {"a": "1\n2\n", "b": "x y"}


@pytest.mark.parametrize("digits", [MAX_DIGITS + 1, 5000])
def test_a_huge_whole_number_is_a_problem(digits: int) -> None:
    # 5000 digits are more than Python itself converts.
    document = read_document(f"a: 1\nb: [2, {'9' * digits}]\n")
    assert document.value == {"a": 1, "b": (2, None)}
    assert [(problem.path, problem.line) for problem in document.problems] == [(("b", 1), 2)]
    assert f"{digits} digits" in document.problems[0].message


def test_a_merge_key_is_a_key_like_any_other() -> None:
    assert read("<<: {a: 1}\nb: 2") == {"<<": {"a": 1}, "b": 2}


def test_keys_are_text_as_written() -> None:
    assert read("1: a\n1e-3: b\nno: c\nnull: d\n'x y': e") == {
        "1": "a",
        "1e-3": "b",
        "no": "c",
        "null": "d",
        "x y": "e",
    }


# Structure and lines


RECIPE = """\
# a comment
name: demo

stages:
  teacher:
    model: {mlp: {hidden: [784,
      10]}}
    objective:
      - ce
      - kl: {tau: 4.0}
"""


def test_lists_are_tuples() -> None:
    assert read(RECIPE) == {
        "name": "demo",
        "stages": {
            "teacher": {"model": {"mlp": {"hidden": (784, 10)}}, "objective": ("ce", {"kl": {"tau": 4.0}})},
        },
    }


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("stages",), 4),
        (("stages", "teacher"), 5),
        (("stages", "teacher", "model", "mlp", "hidden", 0), 6),
        (("stages", "teacher", "model", "mlp", "hidden", 1), 7),
        (("stages", "teacher", "objective"), 8),
        (("stages", "teacher", "objective", 0), 9),
        (("stages", "teacher", "objective", 1, "kl", "tau"), 10),
        (("stages", "teacher", "objective", 1, "kl", "weight"), 10),
        (("stages", "student", "model"), 4),
        (("seed",), 2),
    ],
)
def test_line_of_a_path_or_of_its_nearest_ancestor(path: tuple[str | int, ...], line: int) -> None:
    assert read_document(RECIPE).line_of(path) == line


def test_line_of_anything_in_nothing_is_the_first() -> None:
    assert Document(None, {}, ()).line_of(("a", 1)) == 1


def test_windows_lines_and_a_byte_order_mark() -> None:
    document = read_document("\ufeffa: 1\r\nb:\r\n  - x\r\n")
    assert document.value == {"a": 1, "b": ("x",)}
    assert document.line_of(("b", 0)) == 3


def test_json_is_yaml() -> None:
    assert read('{"a": [1, 2.5, null, true, "x\\n"], "b": {}}') == {"a": (1, 2.5, None, True, "x\n"), "b": {}}


# Problems


@pytest.mark.parametrize(
    ("text", "path", "line", "first"),
    [
        ("a: 1\nb: 2\na: 3\n", ("a",), 3, 1),
        ("x:\n  - k: 1\n    j: 2\n\n    k: 3\n", ("x", 0, "k"), 5, 2),
        ("x: {a: 1,\n  a: 2}", ("x", "a"), 2, 1),
        ("a: 1\n'a': 2", ("a",), 2, 1),
    ],
)
def test_a_repeated_key_is_shown_with_both_lines(text: str, path: tuple[Any, ...], line: int, first: int) -> None:
    problem = problem_of(text)
    assert (problem.path, problem.line) == (path, line)
    assert f"'{path[-1]}' stands twice, first on line {first}" in problem.message
    assert problem.remedy


def test_the_first_of_repeated_keys_is_kept_and_the_rest_read() -> None:
    document = read_document("a: 1\na: 2\na: 3\nb: {c: 4, c: 5}\n")
    assert document.value == {"a": 1, "b": {"c": 4}}
    assert [problem.line for problem in document.problems] == [2, 3, 4]


def test_one_key_in_two_mappings_is_no_repetition() -> None:
    assert read("a: {k: 1}\nb: {k: 2, a: 3}") == {"a": {"k": 1}, "b": {"k": 2, "a": 3}}


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: &x 1", 1), ("a: 1\nb: &x [1]\nc: *x", 2), ("b: 1\nc: *x", 2), ("a: 1\n&k b: 2", 2)],
)
def test_anchors_and_aliases_are_refused(text: str, line: int) -> None:
    problem = problem_of(text)
    assert "anchors and aliases" in problem.message
    assert problem.line == line


def test_a_billion_laughs_end_at_the_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert problem_of(bomb).line == 1


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system ''",
        "!!python/object:os.system {a: 1}",
        "!!python/tuple [1, 2]",
        "!custom 5",
        "!custom [1]",
        "!custom {a: 1}",
        "!a:int 5",
        "!!binary aGVsbG8=",
        "!!timestamp 2001-12-14",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!int abc",
        "!!int ''",
        "!!float x",
        "!!bool maybe",
        "!!null something",
    ],
)
def test_tags_are_refused(tagged: str) -> None:
    problem = problem_of(f"a: 1\nb: {tagged}\n")
    assert problem.line == 2
    assert "tag" in problem.message
    assert problem.remedy


def test_a_tag_on_a_key_is_refused() -> None:
    assert "tag" in problem_of("!!int abc: 1").message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "   \n"])
def test_an_empty_file(text: str) -> None:
    assert read_document(text) == Document(None, {}, (Problem((), 1, "the file is empty"),))


def test_a_key_must_be_a_word() -> None:
    document = read_document("a: 1\n? [x, y]\n: 2\nb: 3\n")
    assert document.value == {"a": 1, "b": 3}
    assert [(problem.line, problem.message) for problem in document.problems] == [(2, "a key must be a plain word")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n\tb: 2\n", 2),
        ("a:\n  - 1\n\t- 2\n", 3),
        ("a: [1,\n2\n", 3),
        ("a: {b: 1\nc: 2\n", 2),
        ("a: 1\nb: c: d\n", 2),
        ("a: 1\nb: @x\n", 2),
        ("a: 1\n b: 2\n", 2),
        ("- 1\nb: 2\n", 2),
        ("a: 1\nb: 'x\n", 3),
        ("a: 1\n%\n", 2),
        ("a: 1\nb: \x07\n", 2),
        ("a: 1\nb: \ud800\n", 2),
        ('a: 1\nb: "\\q"\n', 2),
        ('a: 1\nb: "\\U00110000"\n', 2),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(text: str, line: int) -> None:
    problem = problem_of(text)
    assert problem.message.startswith("not valid YAML: ")
    assert problem.line == line


@pytest.mark.parametrize("text", ['"\\ud800"', 'a: 1\nb: "\\udfff x"', '"\\ud83d\\ude00": 1'])
def test_half_a_character_is_refused(text: str) -> None:
    # JSON writes emoji as two escapes; YAML reads two halves, which no file can hold.
    assert problem_of(text).line == text.count("\n") + 1


def test_two_documents_are_refused() -> None:
    problem = problem_of("a: 1\n---\nb: 2\n")
    assert problem.line == 2
    assert "single document" in problem.message


# Bounds


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [1, MAX_DEPTH])
def test_nesting_up_to_the_bound(depth: int) -> None:
    value, levels = read(nested(depth)), 0
    while value is not None:
        (value,), levels = value or (None,), levels + 1
    assert levels == depth


@pytest.mark.parametrize("text", [nested(MAX_DEPTH + 1), "[" * 20_000, "{a: " * 5_000, "- " * 5_000 + "x"])
def test_nesting_beyond_the_bound(text: str) -> None:
    assert f"deeper than {MAX_DEPTH} levels" in problem_of(text).message


def test_side_by_side_is_not_nested() -> None:
    assert len(read("[" + "[[]], " * 100 + "]")) == 100


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_document, "MAX_NODES", 100)
    assert len(read(f"[{'1, ' * 90}]")) == 90
    assert "more than 100 values" in problem_of(f"[{'1, ' * 110}]").message


def test_a_big_file_is_refused_unread() -> None:
    assert read("# " + "x" * (MAX_BYTES - 7) + "\na: 1") == {"a": 1}
    problem = problem_of("[" * MAX_BYTES + "x")
    assert f"{MAX_BYTES + 1:,} bytes" in problem.message
    assert "bytes" in problem_of("ä" * (MAX_BYTES // 2 + 1)).message


# Properties


def reads_alike(text: str) -> bool:
    """Whether YAML 1.1, which the dumper writes, and 1.2 agree on `text`: they differ over some numbers."""
    return re.fullmatch(r"[-+]?[0-9.]*[eE][-+]?[0-9]+|0o[0-7]+|[-+]?[0-9]+|[-+]?[0-9]*\.[0-9]*", text) is None


# Without what YAML 1.1 takes for the end of a line: the dumper writes those bare, and reading folds them.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029")
TEXT = st.text(CHARACTERS, max_size=20).filter(reads_alike)
WORDS = st.sampled_from(
    ["no", "yes", "on", "~", "null", "true", "1:30", "2001-12-14", "0x1F", "- a", "a: b", "#", "&a", "*a"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**28), 10**28)
    | st.floats(allow_nan=False)
    | TEXT
    | WORDS
    | st.just("!!int 5")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def with_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(with_tuples, value))
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return value


def kinds_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(kinds_of, value))
    if isinstance(value, dict):
        return {key: kinds_of(item) for key, item in value.items()}
    return type(value)


@given(value=VALUES, flow=st.sampled_from([None, True, False]), unicode=st.booleans())
def test_plain_data_reads_back_equal(value: Any, flow: bool | None, unicode: bool) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=unicode, sort_keys=False)
    document = read_document(text)
    assert document.problems == ()
    assert document.value == with_tuples(value)
    assert kinds_of(document.value) == kinds_of(with_tuples(value))


YAML_LIKE = st.text(st.sampled_from("aA1-+.:,?[]{}#&*!|>'\"%@`\\Uux0 \n\t\r\ufeff\x85~=<\ud800\x00"), max_size=30)


@given(text=YAML_LIKE)
def test_any_text_gives_a_value_or_a_problem(text: str) -> None:
    document = read_document(text)
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + 1
    assert all(1 <= problem.line <= lines + 1 and problem.message for problem in document.problems)
    assert_plain(document.value)


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        for item in value.values():
            assert_plain(item)
    elif isinstance(value, tuple):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or isinstance(value, bool | int | float | str)
