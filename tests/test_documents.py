"""README and CONTRIBUTING tell the truth: commands parse, files exist, the example kind works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from compress.cli import main
from compress.models import Output
from compress.objectives import Heads
from compress.variants import load_variants

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for document in DOCUMENTS for block in blocks(document, "sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return sorted({part for part in parts if re.match(r"(\.venv/bin/)?edgefold ", part)})


@pytest.mark.parametrize("command", commands())
def test_every_printed_command_parses(command: str) -> None:
    # With the group's settings: click keeps a command's help option once it has been made.
    parent = click.Context(main, **main.context_settings)
    verb, subcommand, arguments = main.resolve_command(parent, shlex.split(command, comments=True)[1:])
    assert subcommand is not None
    context = subcommand.make_context(verb, arguments, parent=parent)
    assert context.params


def test_the_printed_recipes_pass_check(tmp_path: Path) -> None:
    recipes = [block for block in blocks("README.md", "yaml") if "stages:" in block]
    assert len(recipes) >= 2
    for recipe in recipes:
        (tmp_path / "recipe.yaml").write_text(recipe)
        (variant,) = load_variants(tmp_path / "recipe.yaml")
        assert "student" in variant.recipe.stages


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_file_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:compress|export|runtime|recipes|benchmarks|tests|docs)/[\w./-]+)`", text)
    named += re.findall(r"\]\(((?!http)[\w./-]+)\)", text)
    missing = [name for name in named if not (ROOT / name).exists() and name != "compress/objectives/entropy.py"]
    assert named
    assert not missing


def test_the_example_kind_is_a_working_objective() -> None:
    (example,) = blocks("CONTRIBUTING.md", "python")
    code = [line for line in example.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 15
    assert f"\n{len(code)} lines of code:" in (ROOT / "CONTRIBUTING.md").read_text()
    namespace: dict[str, object] = {"__name__": "entropy"}
    exec(compile(example, "CONTRIBUTING.md", "exec"), namespace)
    spec = namespace["EntropySpec"]
    term = spec(weight=0.5).build(Heads(classes=4, subclasses=1))  # type: ignore[operator]
    uniform = Output(torch.zeros(3, 4), torch.zeros(3, 2), ())
    assert float(term(uniform, None, torch.zeros(3, dtype=torch.long))) == pytest.approx(1.3862944)
