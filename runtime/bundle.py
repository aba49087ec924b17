"""The folder that goes to the device: read and checked, so that what runs is what was exported.

`checksums.sha256` (the format of `sha256sum`) covers every file but itself. A bundle opens only when all of
them match; a model's bytes are compared once more when they are handed to an engine, so the checked bytes are
the used ones. This finds damage and half-copied folders. It is no signature: whoever can write the folder can
write the checksums.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from runtime.errors import BundleError, DataError, UsageError
from runtime.files import sha256_of_bytes, sha256_of_file, write_atomically
from runtime.manifest import FormatFile, Manifest, manifest_from_json
from runtime.tokens import FILE as TOKENIZER
from runtime.tokens import Tokens

if TYPE_CHECKING:
    from runtime.rows import Rows

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.sha256"

_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_COPY_AGAIN = "Copy the bundle again from where it was made, or export it again."


@dataclass(frozen=True)
class Bundle(Manifest):
    """An opened, checked bundle: its manifest, and where it lies.

    `checksums` maps each relative path to its sha256 (hex). `fixed_batch`: the only number of rows that the model takes
    at once, where there is one; never in a bundle, only in a model without one (`runtime.bare_model`).
    """

    path: Path
    checksums: Mapping[str, str]
    fixed_batch: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What a result says of the model that it is about."""
        return {"bundle": {"name": self.name, "recipe_key": self.recipe_key, "checksum": self.checksum}}

    @property
    def described_in(self) -> str:
        """Where the shapes come from that an engine's own are compared with."""
        return MANIFEST

    @property
    def checksum(self) -> str:
        """sha256 of the checksum list as it was when the bundle was opened: one name for its content."""
        return sha256_of_bytes(_checksum_lines(self.checksums).encode())

    def notes(self, *, made_up: bool) -> tuple[str, ...]:
        """What limits a measurement of this model; made_up: with its own samples as inputs, as far as they are none."""
        return ()

    def format(self, name: str) -> FormatFile:
        """Return the entry of format `name`. Raises UsageError with the formats that there are."""
        if name not in self.formats:
            raise UsageError(
                f"{self.path}: no format {name!r} in this bundle; it has {', '.join(self.formats)}",
                remedy=_did_you_mean(name, self.formats),
            )
        return self.formats[name]

    def file_of(self, format: str) -> Path:
        """Return the path of the model file of `format`."""
        return self.path / self.format(format).file

    def read_bytes(self, file: str) -> bytes:
        """Return the content of `file` (a path of the checksum list) after comparing it with its checksum."""
        data = _read(self.path / file)
        if sha256_of_bytes(data) != self.checksums[file]:
            raise _altered(self.path, file)
        return data

    def samples(self) -> Rows:
        """Return the real inputs with their labels, row ids and expected logits."""
        from runtime.rows import check_rows, rows_from_npz  # numpy is only needed from here on

        file = self.samples_file
        try:
            rows = rows_from_npz(io.BytesIO(self.read_bytes(file)), str(self.path / file), with_logits=True)
            check_rows(rows, self, str(self.path / file))
        except DataError as error:
            raise BundleError(error.message, remedy=_COPY_AGAIN) from error
        return rows


def open_bundle(path: str | Path) -> Bundle:
    """Open the bundle folder at `path`: checksums first, then the manifest. Raises BundleError."""
    path = Path(path)
    if not path.is_dir():
        what = "is a file, expected a bundle folder" if path.exists() else "does not exist"
        raise BundleError(f"{path}: {what}", remedy="Give the folder that holds manifest.json.")
    if not (path / MANIFEST).exists():
        raise BundleError(
            f"{path}: not a bundle, it has no {MANIFEST}", remedy="Give the folder that holds manifest.json."
        )
    checksums = _read_checksums(path)
    for file, expected in checksums.items():
        if sha256_of_file(_inside(path, file, named_by=CHECKSUMS)) != expected:
            raise _altered(path, file)
    _require_listed(path, [MANIFEST], checksums)
    manifest = _read_manifest(path, checksums)
    bundle = Bundle(**vars(manifest), path=path, checksums=checksums)
    _check_files(bundle)
    return _with_tokenizer(bundle)


def write_checksums(folder: Path) -> None:
    """Write `checksums.sha256` over every file below `folder`: the last step of making a bundle."""
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file != folder / CHECKSUMS
    )
    for file in files:
        _inside(folder, file, named_by="the folder")
    checksums = {file: sha256_of_file(folder / file) for file in files}
    write_atomically(folder / CHECKSUMS, _checksum_lines(checksums))


def bundle_checksum(path: Path) -> str:
    """Return the sha256 (hex) of the bundle's `checksums.sha256`, which stands for all its files."""
    return sha256_of_bytes(_read(Path(path) / CHECKSUMS))


def _checksum_lines(checksums: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {file}\n" for file, digest in checksums.items())


def _read_checksums(path: Path) -> dict[str, str]:
    list_path = path / CHECKSUMS
    if not list_path.is_file():
        raise BundleError(f"{list_path} is missing: the bundle is incomplete", remedy=_COPY_AGAIN)
    try:
        text = _read(list_path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{list_path}: not UTF-8 ({error.reason})", remedy=_COPY_AGAIN) from None
    *lines, rest = text.split("\n")  # not splitlines(), which also ends lines at \r, \v, ...
    if rest:
        raise BundleError(f"{list_path}: the last line does not end with a newline", remedy=_COPY_AGAIN)
    checksums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in checksums:
            problem = "listed twice" if match else "expected '<sha256 in hex>  <relative path>'"
            raise BundleError(f"{list_path}, line {number}: {line[:90]!r}, {problem}", remedy=_COPY_AGAIN)
        checksums[match[2]] = match[1]
    return checksums


def _read_manifest(path: Path, checksums: Mapping[str, str]) -> Manifest:
    data = _read(path / MANIFEST)
    if sha256_of_bytes(data) != checksums[MANIFEST]:
        raise _altered(path, MANIFEST)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path / MANIFEST}: not UTF-8 ({error.reason})") from None
    return manifest_from_json(text, str(path / MANIFEST))


def _check_files(bundle: Bundle) -> None:
    """Check that every file the manifest names is inside, listed, and as the manifest describes it."""
    for file in bundle.files:
        _inside(bundle.path, file, named_by=MANIFEST)
    _require_listed(bundle.path, bundle.files, bundle.checksums)
    for format, entry in bundle.formats.items():
        size = (bundle.path / entry.file).stat().st_size
        if size != entry.size_bytes:
            raise BundleError(
                f"{bundle.path / MANIFEST}: formats.{format}.size_bytes is {entry.size_bytes}, "
                f"but {entry.file} has {size} bytes",
                remedy=_COPY_AGAIN,
            )
    expected = "".join(f"{name}\n" for name in bundle.class_names).encode()
    if bundle.read_bytes(bundle.labels_file) != expected:
        raise BundleError(
            f"{bundle.path / bundle.labels_file}: its lines are not the class_names of {MANIFEST}",
            remedy=_COPY_AGAIN,
        )


def _with_tokenizer(bundle: Bundle) -> Bundle:
    """Give a bundle's featuriser the tokenizer that lies beside the manifest, where it has one."""
    if not isinstance(bundle.text, Tokens):
        return bundle
    try:
        return replace(bundle, text=replace(bundle.text, definition=bundle.read_bytes(TOKENIZER)))
    except UsageError as error:
        raise BundleError(f"{bundle.path / MANIFEST}: text: {error.message}", remedy=_COPY_AGAIN) from None


def _require_listed(path: Path, files: Iterable[str], checksums: Mapping[str, str]) -> None:
    for file in files:
        if file not in checksums:
            raise BundleError(f"{path / CHECKSUMS}: {file} is not listed", remedy=_COPY_AGAIN)


def _inside(folder: Path, file: str, *, named_by: str) -> Path:
    """Return `folder / file` if it is a regular file below `folder`, however links and dots are followed."""
    pure = PurePosixPath(file)
    plain = bool(file) and not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == file
    # A backslash or a colon would mean a folder or a drive on Windows, a newline a second line in the list.
    if not plain or any(sign in file for sign in "\\:\n\0"):
        raise BundleError(
            f"{folder}: {named_by} names {file!r}, expected a plain path inside the bundle",
            remedy="Do not use this bundle unless you know who made it; export it again.",
        )
    path = folder / file
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise BundleError(
            f"{path} is missing, but {named_by} names it: the bundle is incomplete", remedy=_COPY_AGAIN
        ) from None
    if not resolved.is_relative_to(folder.resolve()):
        raise BundleError(
            f"{path} leads out of the bundle through a symlink, to {resolved}",
            remedy="Copy the bundle with its links followed (cp -rL, rsync -L).",
        )
    if not resolved.is_file():
        raise BundleError(f"{path} is not a regular file", remedy=_COPY_AGAIN)
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}", remedy=_COPY_AGAIN) from error


def _altered(path: Path, file: str) -> BundleError:
    return BundleError(
        f"{path / file} is altered or damaged: its sha256 is not the one in {CHECKSUMS}", remedy=_COPY_AGAIN
    )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""
