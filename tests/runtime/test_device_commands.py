import contextlib

import pytest

from runtime.device_commands import lines_of, lines_while_running


@pytest.fixture
def endless(command, tmp_path):
    """Put a command of this body on PATH."""

    def put(body):
        path = tmp_path / "bin/endless"
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
        path.chmod(0o755)

    return put


def test_lines_have_no_spaces_around_and_none_is_empty(command):
    command("says", "  one\n\n two words \n")
    assert lines_of("says", "--this") == ("one", "two words")
    command("says", "one", status=3)
    assert lines_of("says") is None
    assert lines_of("there-is-none") is None


def test_lines_come_whole_until_the_limit(endless):
    endless("printf 'fir'; sleep 0.1; printf 'st\\nsecond\\nnot who'; exec sleep 60")
    assert list(lines_while_running("endless", limit_s=0.5)) == ["first", "second"]
    endless("echo only; printf rest")
    assert list(lines_while_running("endless", limit_s=30)) == ["only"]
    assert list(lines_while_running("there-is-none", limit_s=30)) == []


def test_a_caller_that_has_enough_ends_it(endless, tmp_path):
    endless(f"trap 'echo ended > {tmp_path}/trap' EXIT TERM; while :; do echo line; sleep 0.01; done")
    with contextlib.closing(lines_while_running("endless", limit_s=60)) as lines:
        assert [next(lines), next(lines)] == ["line", "line"]
    assert list(lines) == []
    assert not (tmp_path / "trap").exists()  # it was not asked
