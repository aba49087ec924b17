"""Finding and loading the operators' library; tests/runtime/ops checks what it computes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import custom_ops, device
from runtime.__main__ import main
from runtime.errors import EngineError, MissingExtraError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the header of ELF files")
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")

LIBRARY = """
extern "C" const char* edgefold_isa() { return "made-up"; }
extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }
"""


def build(folder: Path, source: str = LIBRARY) -> Path:
    (folder / "library.cpp").write_text(source)
    library = folder / "library.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, folder / "library.cpp"], check=True)
    return library


@pytest.fixture
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(custom_ops, "_loaded", [])
    custom_ops._load.cache_clear()
    yield
    custom_ops._load.cache_clear()


@pytest.fixture
def not_built(monkeypatch, tmp_path, nothing_loaded):
    monkeypatch.delenv(custom_ops.OVERRIDE, raising=False)
    monkeypatch.setattr(custom_ops, "FOLDER", tmp_path)
    monkeypatch.setattr(custom_ops, "_installed", lambda: None)


def test_a_library_that_was_not_built_says_how_to_get_it(not_built, tmp_path):
    with pytest.raises(MissingExtraError, match="was not built when edgefold was installed") as raised:
        custom_ops.library_path()
    assert str(tmp_path / custom_ops.FILE_NAME) in raised.value.message
    assert "C++17 compiler" in raised.value.remedy
    assert custom_ops.OVERRIDE in raised.value.remedy
    assert not custom_ops.available()


def test_a_checkout_without_a_library_takes_the_installed_packages(monkeypatch, tmp_path, nothing_loaded):
    class Installed:
        def locate_file(self, name):
            return tmp_path / "site-packages" / name

    built = tmp_path / "site-packages" / "runtime" / "ops" / custom_ops.FILE_NAME
    monkeypatch.delenv(custom_ops.OVERRIDE, raising=False)
    monkeypatch.setattr(custom_ops, "FOLDER", tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    with pytest.raises(custom_ops.MissingExtraError):
        custom_ops._path()
    built.parent.mkdir(parents=True)
    built.write_bytes(b"")
    assert custom_ops._path() == built


def test_an_override_that_is_no_file_is_named(monkeypatch, nothing_loaded):
    monkeypatch.setenv(custom_ops.OVERRIDE, "nowhere.so")
    with pytest.raises(MissingExtraError, match=r"EDGEFOLD_OPS_LIBRARY is 'nowhere\.so', which is no file"):
        custom_ops.instruction_set()


@COMPILER
@LINUX
def test_the_override_is_loaded_and_its_instruction_set_recorded(monkeypatch, tmp_path, capsys, nothing_loaded):
    library = build(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(custom_ops.OVERRIDE, "library.so")
    assert "custom_ops" not in device.read_environment().to_json()
    assert custom_ops.library_path() == library
    assert custom_ops.instruction_set() == "made-up"
    assert device.read_environment().to_json()["custom_ops"] == "made-up"
    assert main(["ops"]) == 0
    assert capsys.readouterr().out == f"{library}\nmade-up\n"


def test_ops_without_a_library_is_an_error_with_its_remedy(capsys, not_built):
    assert main(["ops"]) == 2
    assert "C++17 compiler" in capsys.readouterr().err


@COMPILER
@LINUX
def test_another_machines_library_is_refused_by_its_name(monkeypatch, tmp_path, nothing_loaded):
    content = bytearray(build(tmp_path).read_bytes())
    other = {"x86_64": (183, "aarch64")}.get(platform.machine(), (62, "x86_64"))
    content[18:20] = other[0].to_bytes(2, "little")
    (tmp_path / "other.so").write_bytes(content)
    monkeypatch.setenv(custom_ops.OVERRIDE, str(tmp_path / "other.so"))
    with pytest.raises(EngineError, match=f"other.so is built for {other[1]}, and this Python for") as raised:
        custom_ops.library_path()
    assert raised.value.remedy


@LINUX
@pytest.mark.parametrize("content", [b"", b"MZ" + bytes(100), b"\x7fELF"])
def test_a_file_that_is_no_library_is_refused(monkeypatch, tmp_path, nothing_loaded, content):
    (tmp_path / "none.so").write_bytes(content)
    monkeypatch.setenv(custom_ops.OVERRIDE, str(tmp_path / "none.so"))
    with pytest.raises(EngineError, match="is no shared library of Linux"):
        custom_ops.library_path()


@COMPILER
@LINUX
def test_a_library_of_something_else_is_refused(monkeypatch, tmp_path, nothing_loaded):
    monkeypatch.setenv(custom_ops.OVERRIDE, str(build(tmp_path, "int nothing;")))
    with pytest.raises(EngineError, match=r"cannot be loaded: .*edgefold_isa"):
        custom_ops.library_path()
    assert custom_ops.loaded_instruction_set() is None


def test_ops_imports_no_engine():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "runtime", "ops"],
        capture_output=True, text=True, env={**os.environ, custom_ops.OVERRIDE: "none"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "onnxruntime" not in done.stderr
