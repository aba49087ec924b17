"""Processors that add pairs of 8-bit products in 16 bits, and what ONNX Runtime is told of them."""

from pathlib import Path

import onnxruntime
import pytest

from runtime import cpu

FLAGS = "processor\t: 0\nmodel name\t: a processor\nflags\t\t: fpu sse4_1 avx2 {}\nbugs\t\t: avx_vnni\n"


def root(folder: Path, flags: str | None) -> Path:
    (folder / "proc").mkdir()
    if flags is not None:
        (folder / "proc/cpuinfo").write_text(FLAGS.format(flags))
    return folder


@pytest.mark.parametrize(
    ("machine", "flags", "overflow"),
    [
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", "avx_vnni", False),
        ("AMD64", "avx512f", True),
        ("x86_64", None, True),  # Windows and macOS have no such file
        ("aarch64", None, False),
        ("armv7l", "", False),
    ],
)
def test_x86_before_vnni_overflows(
    machine: str, flags: str | None, overflow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    assert cpu.pairs_overflow(root(tmp_path, flags)) is overflow


@pytest.mark.parametrize("overflow", [True, False])
def test_only_there_the_engine_adds_exactly(overflow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "pairs_overflow", lambda: overflow)
    options = onnxruntime.SessionOptions()
    cpu.keep_products_exact(options)
    if overflow:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")
