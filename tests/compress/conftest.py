"""A small recipe on the bundled digits, and its finished run, made once: an export costs seconds."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from compress.cli import main
from compress.pipeline import Outcome, plans_of, run_plans
from compress.progress import Progress
from compress.stages import Settings

TINY = """\
name: tiny
description: Two parities of the digits, with two invented subclasses each.
data: {source: digits, relabel: {modulo: 2}}
train: {epochs: 2, batch_size: 64, optimizer: {adam: {lr: 5e-3}}}
stages:
  teacher:
    model: {mlp: {hidden: [32]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  student:
    model: {mlp: {hidden: [8]}}
    subclasses: 2
    teacher: teacher
    objective: [kl, ce]
export: {stage: student, subclass_probabilities: true, batch_sizes: [1, 8]}
benchmark: [{local: {quick: true}}]
"""
BENCHMARK = "benchmark: [{local: {quick: true}}]\n"


@dataclass
class Narration:
    """Takes the place of the terminal: keeps what a run says."""

    events: list[Progress | str] = field(default_factory=list)

    def __call__(self, event: Progress | str) -> None:
        self.events.append(event)

    @property
    def messages(self) -> list[str]:
        return [event for event in self.events if isinstance(event, str)]

    @property
    def warnings(self) -> list[str]:
        return [message for message in self.messages if message.startswith("warning")]

    @property
    def trained(self) -> list[str]:
        """Names of the stages that were trained, in order."""
        return list(dict.fromkeys(event.stage for event in self.events if isinstance(event, Progress)))


@dataclass(frozen=True)
class Project:
    """A folder with `tiny.yaml` and `runs/`, and the ways to use them."""

    folder: Path
    text: str = TINY

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def results(self) -> Path:
        return self.runs / "tiny"

    @property
    def bundle(self) -> Path:
        return self.results / "bundle"

    def write(self, text: str, name: str = "tiny.yaml") -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def edit(self, old: str, new: str) -> Path:
        """Put `new` in the place of `old` in tiny.yaml."""
        text = self.recipe.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the recipe"
        return self.write(text.replace(old, new))

    def run(self, recipe: Path | None = None, **options: Any) -> tuple[Outcome, Narration]:
        """Run a recipe in this process, without the command line."""
        narration = Narration()
        data_root = options.pop("data_root", None)
        settings = Settings(self.runs, data_root, "cpu", quick=options.pop("quick", False))
        outcome = run_plans(plans_of(recipe or self.recipe, data_root), settings, narration, **options)
        return outcome, narration

    def invoke(self, *arguments: object) -> Result:
        """Call `edgefold` with `--runs` where the verb takes it; stdout and stderr are kept apart."""
        takes_runs = arguments[0] not in ("--debug", "check", "list", "doctor", "inspect") and "--runs" not in arguments
        runs = ["--runs", self.runs] if takes_runs else []
        return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *runs)])


@pytest.fixture(autouse=True)
def _no_data_folder_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFOLD_DATA", raising=False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`edgefold run tiny.yaml`, ended. Shared: read it, and change only a copy (`project`)."""
    folder = tmp_path_factory.mktemp("finished")
    project = Project(folder)
    project.write(TINY)
    result = project.invoke("run", project.recipe)
    assert result.exit_code == 0, result.output
    (folder / "stdout.txt").write_text(result.stdout)
    (folder / "stderr.txt").write_text(result.stderr)
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run of one's own."""
    shutil.copytree(finished.folder, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def empty_project(tmp_path: Path) -> Project:
    """The recipe, and no results."""
    project = Project(tmp_path / "empty")
    project.folder.mkdir()
    project.write(TINY)
    return project


@pytest.fixture
def narration() -> Narration:
    return Narration()


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Return `png(seed)`: a grey 8×8 image, encoded."""

    def encode(seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def image_parquet(png: Callable[..., bytes]) -> Callable[..., Path]:
    """Return `write(folder, replace={row: bytes})`: 40 rows of two labels as train, in `folder`."""

    def write(folder: Path, replace: dict[int, bytes] | None = None) -> Path:
        images = [(replace or {}).get(row, png(row)) for row in range(40)]
        column = pa.array([{"bytes": image, "path": None} for image in images])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "train-00000-of-00001.parquet"
        pq.write_table(pa.table({"image": column, "label": [row % 2 for row in range(40)]}), path)
        return path

    return write


@pytest.fixture
def image_folder(png: Callable[..., bytes]) -> Callable[..., Path]:
    """Return `write(folder, names)`: twenty images in a directory for each class."""

    def write(folder: Path, names: Sequence[str] = ("cat", "dog")) -> Path:
        for number, name in enumerate(names):
            (folder / name).mkdir(parents=True)
            for row in range(20):
                (folder / name / f"{row:02d}.png").write_bytes(png(100 * number + row))
        return folder

    return write


@pytest.fixture
def untrained_text() -> str:
    """A recipe without subclasses, view, export and benchmark: one stage, `name: tiny`."""
    return (
        "name: tiny\ndata: {source: digits}\ntrain: {epochs: 1}\n"
        "stages:\n  plain: {model: {mlp: {hidden: [8]}}, objective: ce}\n"
    )
