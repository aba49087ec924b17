"""The arrows of the design: compress → export → runtime, and what each may import."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("compress", "export", "runtime")
RUNTIME_MAY_IMPORT = {"numpy", "onnxruntime", "openvino", "runtime", "tokenizers", "mlperf_loadgen"}


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files_of("runtime"), ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_imports_only_the_standard_library_numpy_and_an_engine(path: Path) -> None:
    allowed = RUNTIME_MAY_IMPORT | set(sys.stdlib_module_names)
    assert imported_names(path) <= allowed


@pytest.mark.parametrize("path", files_of("export"), ids=lambda path: str(path.relative_to(ROOT)))
def test_export_never_imports_compress(path: Path) -> None:
    assert "compress" not in imported_names(path)


@pytest.mark.parametrize("package", ["export", "runtime"])
def test_package_init_is_empty(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""


@pytest.mark.parametrize("package", PACKAGES)
def test_import_name_belongs_to_this_distribution_alone(package: str) -> None:
    # What an editable or ordinary install records; a second owner would shadow this package or be shadowed by it.
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {"edgefold"}
    files = importlib.metadata.files("edgefold") or []
    location = subprocess.run(
        [sys.executable, "-c", f"import {package}; print({package}.__file__)"],
        capture_output=True, text=True, check=True, cwd=ROOT.anchor,
    ).stdout.strip()  # fmt: skip
    recorded = {Path(str(file.locate())).resolve() for file in files if file.name == "__init__.py"}
    assert Path(location).resolve() in recorded | {(ROOT / package / "__init__.py").resolve()}


def modules_after(*command: str) -> set[str]:
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    return {
        line.rsplit("|", 1)[1].strip().split(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }


HEAVY = {"torch", "pydantic", "onnxruntime", "openvino", "onnx", "sklearn", "pyarrow", "matplotlib", "rich"}
HEAVY |= {"transformers", "tokenizers", "huggingface_hub"}


def test_runtime_help_imports_nothing_heavy() -> None:
    assert not modules_after("-m", "runtime", "--help") & (HEAVY | {"click", "yaml"})


def test_edgefold_help_imports_nothing_heavy() -> None:
    assert not modules_after("-c", "from compress.cli import main; main(['--help'], standalone_mode=False)") & HEAVY


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "check",
        "plan",
        "train",
        "export",
        "export engine",
        "verify",
        "bench",
        "accuracy",
        "inspect",
        "report",
        "analyse",
        "list",
        "doctor",
    ],
)
def test_every_verb_has_a_sentence_and_an_example(verb: str) -> None:
    from click.testing import CliRunner

    from compress.cli import main

    result = CliRunner().invoke(main, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"edgefold {verb}" in result.output.split("Example:")[1]
