"""Every shipped recipe goes the whole way, scaled down to seconds: from its data to a report.

Real data where EDGEFOLD_DATA has it, small files in the authors' own format elsewhere, and tiny random encoders under
the names that recipes give. A few recipes run with the other tests, all of them with

    pytest -m every_recipe
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
from click.testing import CliRunner

from compress.cli import main
from compress.library import shipped_recipes
from compress.recipe import Recipe, load_recipe
from compress.yaml_document import read_document

# Those whose networks are small enough to run with the other tests; KL against MSE has none.
WITH_THE_OTHER_TESTS = {
    "binary/binary-mnist",
    "quickstart",
    "lelp/rotten-tomatoes",
    "srrl/cifar10-short",
    "subclass-distillation/mnist-2x5",
}
# One epoch of a hundred rows or so, and more where a class needs more rows for its subclasses.
SCALE = 0.002
GENERATED_ROWS = {"imdb": 400}
SCALES = {
    "lelp/rotten-tomatoes": 0.01,
    "lelp/lelp-table-2": 0.08,
    "lelp/lelp-table-3": 0.01,  # its teacher is deep: fewer steps leave its batch norms unsettled
    "lelp/lelp-figure-6": 0.01,
}


RECIPES = [
    pytest.param(name, marks=[] if name in WITH_THE_OTHER_TESTS else [pytest.mark.every_recipe], id=name)
    for name in shipped_recipes()
]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that recipes share decoded data and the stages that they have in common."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def provide(recipe: Recipe, data_root: Path) -> None:
    """Put the recipe's data set below `data_root`: the real one if it is at hand, else generated files."""
    kind = recipe.data.source.kind
    if kind == "digits" or (data_root / kind).exists():
        return
    real = Path(os.environ["EDGEFOLD_DATA"]) / kind if os.environ.get("EDGEFOLD_DATA") else None
    if real is not None and real.exists():
        (data_root / kind).symlink_to(real)
    else:
        importlib.import_module(f"true_formats.{kind}").write(data_root, rows=GENERATED_ROWS.get(kind, 40))


def encoder_names(value: Any) -> Iterator[str]:
    """Yield the published encoders and tokenizers that a recipe's plain data names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("encoder", "tokenizer") and inner is not None:
                yield inner if isinstance(inner, str) else inner["name"]
            yield from encoder_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from encoder_names(inner)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_the_whole_way_scaled_down(
    name: str, runs: Path, data_root: Path, encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFOLD_MODELS", str(encoders))
    document = read_document(shipped_recipes()[name].read_text())
    for encoder in dict.fromkeys(encoder_names(document.value)):
        if not (encoders / encoder).exists():
            tiny_encoders.write(encoders / encoder, positions=512)
    recipe, _ = load_recipe(shipped_recipes()[name])
    provide(recipe, data_root)
    where = ["--runs", str(runs), "--data-root", str(data_root), "--device", "cpu"]
    scale = SCALES.get(name, SCALE)
    part = ["--scale", str(scale), "--seed", str(recipe.all_seeds[0]), "--variant", "1"]
    result = CliRunner().invoke(main, ["run", name, "--quick", *where, *part])
    assert result.exit_code == 0, result.output
    report = json.loads((runs / f"{recipe.name}@{scale:g}" / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert set(recipe.stages) <= set(rows)
    assert all(row["parity"] == "passed" for row in rows.values() if row["what"] == "export")
    formats = len({"onnx", *(each.kind for each in recipe.export.formats)})
    assert len([row for row in rows.values() if row["what"] == "export"]) == formats
    assert "Scaled to" in (runs / f"{recipe.name}@{scale:g}" / "report.html").read_text()
