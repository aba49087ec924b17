from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from runtime import remote_end
from runtime.remote_end import RefusedError


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose home cannot be written, as Android's shell has; the folder for temporary files is returned."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(remote_end, "_TEMPORARY", ())
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_files_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remote_end.cache_folder("files") == (tmp_path / "edgefold" / "files", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert remote_end.cache_folder("files") == (tmp_path / "home" / ".cache" / "edgefold" / "files", "")


def test_without_a_home_they_are_kept_among_temporary_files(no_home: Path) -> None:
    store, note = remote_end.cache_folder("files")
    own = no_home / f"edgefold-{os.geteuid()}"
    assert store == own / "files"
    assert note == f"files are kept in {own}: /proc/.cache cannot be made or written: No such file or directory"
    assert own.stat().st_mode & 0o777 == 0o700
    assert remote_end.cache_folder("files") == (store, note)  # the second time it is there


def test_androids_folder_is_taken_where_tmpdir_is_not_set(
    no_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(remote_end, "_TEMPORARY", (str(tmp_path / "none"), str(tmp_path)))
    assert remote_end.cache_folder("files")[0] == tmp_path / f"edgefold-{os.geteuid()}" / "files"


@pytest.mark.parametrize("how", ["others may write", "a link", "a file"])
def test_a_folder_that_others_may_have_made_is_refused(no_home: Path, how: str) -> None:
    own = no_home / f"edgefold-{os.geteuid()}"
    if how == "others may write":
        own.mkdir()
        own.chmod(0o777)
    elif how == "a link":
        (no_home / "theirs").mkdir(mode=0o700)
        own.symlink_to("theirs")
    else:
        own.touch()
    with pytest.raises(RefusedError, match=r"no folder for files: /proc/\.cache cannot be made or written") as caught:
        remote_end.cache_folder("files")
    assert caught.value.remedy == "Set TMPDIR or XDG_CACHE_HOME there to one that can be written."


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(b"one").hexdigest()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / sha256).write_bytes(b"one")
    monkeypatch.delattr(os, "link")  # Termux's Python is built without it
    files = [{"path": "bundle/a", "sha256": sha256, "size": 3}]
    remote_end._lay_out(files, tmp_path / "store", tmp_path / "run")
    assert (tmp_path / "run" / "bundle" / "a").read_bytes() == b"one"
    assert (tmp_path / "run" / "bundle" / "a").stat().st_nlink == 1


class Listening:
    """Takes the place of the link to the other end."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], bytes]] = []

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        self.sent.append((message, payload))

    def is_cut(self) -> bool:
        return False


def test_what_a_run_leaves_among_temporary_files_lies_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__main__.py").write_text(
        "import sys, tempfile\nopen(sys.argv[-1], 'w').write(tempfile.mkdtemp())\n"
    )
    link = Listening()
    remote_end._run(link, tmp_path, [], 60.0)  # type: ignore[arg-type]
    (message, payload) = link.sent[-1]
    assert message["done"] == 0
    assert Path(payload.decode()).parent == tmp_path / "tmp"
