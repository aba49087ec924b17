"""A file that is another one by the time it is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress import remote


def file_that_changes_once_announced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of the bytes `model`, which become `mode1` as soon as its checksum was taken."""
    path = folder / "model.onnx"
    path.write_bytes(b"model")
    announced = remote._sha256

    def altered(content: Any) -> str:
        digest = announced(content)
        if content == path:
            path.write_bytes(b"mode1")
        return digest

    monkeypatch.setattr(remote, "_sha256", altered)
    return path
