"""The one file that goes to a device: the package `runtime` as a zip that Python runs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import runtime

_MAIN = "import sys\nfrom runtime.__main__ import main\nsys.exit(main())\n"
_SHEBANG = b"#!/usr/bin/env python3\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip entry can have: equal sources give equal bytes


def agent_bytes() -> bytes:
    """Return `remote_end.AGENT`: every module of `runtime`; not the sources of its operators, which compile."""
    package = Path(runtime.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        _add(archive, "__main__.py", _MAIN.encode())
        for path in sorted(package.rglob("*.py")):
            inside = path.relative_to(package)
            if inside.parts[0] != "ops":
                _add(archive, f"runtime/{inside.as_posix()}", path.read_bytes())
    return _SHEBANG + buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3  # Unix, on every system
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
