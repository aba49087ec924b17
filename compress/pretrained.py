"""Folders of published encoders: where a name leads, what lies there, and its content by hash. Nothing is unpickled.

A name is looked for as a folder, then as a folder below EDGEFOLD_MODELS, then among what huggingface_hub has fetched
before, and last on the hub itself, where a network is allowed. Such a folder holds `config.json`, `tokenizer.json` and
`model.safetensors`, or its parts `model-00001-of-00002.safetensors`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from runtime.errors import DataError, MissingExtraError
from runtime.files import sha256_of_file

ENVIRONMENT = "EDGEFOLD_MODELS"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_PATTERN = "model*.safetensors"
INDEX = "model.safetensors.index.json"
# A line of sha256sum beside the config stands for weights that are not there: enough to name a stage that is finished.
RECORDED = ".sha256"


def file_of(name: str, file: str, *, network: bool) -> Path:
    """Return the path of `file` of the encoder `name`. Raises DataError, saying where it was looked for."""
    for folder in _folders(name):
        if (folder / file).is_file():
            return folder / file
    return _folder_on_the_hub(name, (file,), network=network) / file


def folder_with_weights(name: str, *, network: bool) -> Path:
    """Return the folder of the encoder `name` that holds config and weights. Raises DataError."""
    for folder in _folders(name):
        if (folder / CONFIG).is_file() and weight_files(folder):
            return folder
    if any((folder / CONFIG).is_file() for folder in _folders(name)):
        raise _missing(name, f"no {WEIGHTS} beside its {CONFIG}", "Put it there, or write `pretrained: false`.")
    return _folder_on_the_hub(name, (CONFIG, WEIGHTS_PATTERN, INDEX), network=network)


def weight_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob(WEIGHTS_PATTERN)))


def weights_content(name: str, *, network: bool) -> dict[str, str]:
    """Return the sha256 of every file of the weights of `name`, by file name; recorded ones where there are no weights.

    A finished stage has weights of its own: to name it again, `model.safetensors.sha256` (a line of sha256sum) beside
    the config is enough.
    """
    for folder in _folders(name):
        if (folder / CONFIG).is_file() and not weight_files(folder):
            recorded = sorted(folder.glob(WEIGHTS_PATTERN + RECORDED))
            if recorded:
                return {path.name.removesuffix(RECORDED): _recorded(path) for path in recorded}
    return {path.name: content_of(path) for path in weight_files(folder_with_weights(name, network=network))}


def content_of(path: Path) -> str:
    """Return the sha256 hex of a file, computed once for as long as it does not change."""
    state = path.stat()
    return _content_of(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _content_of(path: Path, size: int, changed_ns: int) -> str:
    return sha256_of_file(path)


def require(package: str, what: str) -> ModuleType:
    """Import a package of the extra `text`. Raises MissingExtraError."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(
            f"{package} is not installed; {what} needs it", "pip install 'edgefold[text]'"
        ) from None


def _folders(name: str) -> Iterable[Path]:
    yield Path(name).expanduser()
    if root := os.environ.get(ENVIRONMENT):
        yield Path(root).expanduser() / name


def _folder_on_the_hub(name: str, files: tuple[str, ...], *, network: bool) -> Path:
    """Return the hub's local copy of `name` with `files` (patterns), fetched where that is allowed."""
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise _missing(name, f"no {files[0]} there")
    hub = require("huggingface_hub", f"the encoder '{name}', which is no folder here,")
    for local in (True, False) if network else (True,):
        try:
            folder = Path(hub.snapshot_download(name, allow_patterns=list(files), local_files_only=local))
        except Exception as error:  # it raises types of several libraries: no network, no such name, no access
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if all(any(folder.glob(pattern)) for pattern in files if pattern != INDEX):
            return folder
        cause = f"there is no {files[-1] if len(files) == 1 else WEIGHTS} on the hub"
    raise _missing(name, f"no folder of that name, and not from the hub ({cause})")


def _missing(name: str, problem: str, remedy: str = "") -> DataError:
    root = os.environ.get(ENVIRONMENT)
    below = f"{Path(root) / name}" if root else f"${ENVIRONMENT}/{name}"
    layout = f"Looked for in {name} and {below}: {CONFIG}, {TOKENIZER} and {WEIGHTS}."
    return DataError(f"encoder '{name}': {problem}", remedy=f"{layout} {remedy or _HOW_TO_FETCH.format(name=name)}")


_HOW_TO_FETCH = (
    f"Name a folder, or set {ENVIRONMENT} to the folder that holds it; where there is a network: "
    "hf download {name} --local-dir {name}"
)


def _recorded(path: Path) -> str:
    words = path.read_text(encoding="utf-8").split()
    if not words or len(words[0]) != 64:
        raise DataError(f"{path}: expected a line of sha256sum", f"sha256sum {WEIGHTS} > {path.name}")
    return words[0]
