"""MODEL_CARD.md of a run and of its bundle: what results say, in Markdown that is well-formed."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from runtime.bundle import open_bundle


def tables(card: str) -> list[list[list[str]]]:
    """Return the cells of every table, and fail where a line has another number of cells than its head."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", card, re.M):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, block
        assert all(set(cell.strip()) == {"-"} for cell in rows[1])
        found.append([[cell.strip() for cell in row] for row in (rows[0], *rows[2:])])
    return found


def test_the_run_s_card_is_its_results(finished: Any) -> None:
    card = (finished.results / "MODEL_CARD.md").read_text()
    facts, files, latency, training, data = tables(card)
    parity = json.loads((finished.results / "parity.json").read_text())["formats"]["onnx"]
    accuracy = json.loads((finished.results / "accuracy.onnx.json").read_text())
    bench = json.loads((finished.results / "bench.onnx.local.json").read_text())
    bundle = open_bundle(finished.bundle)
    assert card.startswith("# tiny: student\n\nTwo parities of the digits")
    known = dict(facts[1:])
    assert known["checksum of the bundle"] == f"`{bundle.checksum}`"
    assert known["recipe key"] == f"`{bundle.recipe_key}`"
    assert known["subclasses"].startswith("2 for each class")
    low, high = accuracy["interval_95"]
    share = f"{100 * accuracy['accuracy']:.2f} % ({100 * low:.2f} – {100 * high:.2f})"
    assert known["test accuracy"] == f"{share}, 359 rows"
    (form,) = files[1:]
    assert form[0] == "onnx"
    assert (form[3], form[6]) == (share, "passed")
    assert float(form[4]) == float(f"{parity['comparison']['max_error_over_std']:.1e}")
    (measured,) = latency[1:]
    assert measured[2] == f"onnxruntime {bench['engine']['version']}"
    assert "(quick)" in measured[5]
    assert [row[:1] + row[2:3] for row in training[1:]] == [["teacher", "labels"], ["student", "teacher"]]
    assert len(re.findall(r"`[0-9a-f]{64}`", dict(data[1:])["sha256 of its content"])) == 1
    assert "Licence and terms of the data**: not recorded" in card
    assert re.search(r"Seed 0\. Student and teacher agree on [0-9.]+ % of the test rows\.", card)


def test_the_bundle_s_card_is_what_was_known_at_export(finished: Any) -> None:
    card = (finished.bundle / "MODEL_CARD.md").read_text()
    facts, files, training, _ = tables(card)
    assert files == [["format", "precision", "size"], ["onnx", "fp32", files[1][2]]]
    assert "checksum of the bundle" not in dict(facts)
    assert "Parity and latency are measured after export" in card
    assert len(training) == 3
    # It is covered by the checksums like every other file.
    assert "MODEL_CARD.md" in open_bundle(finished.bundle).checksums


def test_the_recipe_in_the_card_is_that_in_the_model(finished: Any) -> None:
    card = (finished.results / "MODEL_CARD.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", card, re.S)
    assert list(yaml.safe_load(text)["stages"]) == ["teacher", "student"]
    result = finished.invoke("inspect", finished.bundle / "model.onnx", "--json")
    assert json.loads(result.stdout)["recipe"] == text
