"""torch-tensorrt: by a stand-in that keeps what was called, and for real where it can be imported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from export.parity import GATES
from export.to_torch_tensorrt import program_from_graph, torch_tensorrt_module
from runtime.errors import ExportError, GateError, MissingExtraError


class StandIn(ModuleType):
    """Compiles to `scale` times the graph; saves its name."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__("torch_tensorrt")
        self.Input = SimpleNamespace
        self.scale = scale
        self.compiled: dict[str, Any] = {}
        self.saved: dict[str, Any] = {}
        self.batches: list[int] = []

    def compile(self, graph: torch.nn.Module, **options: Any) -> Any:
        self.compiled = options

        def run(batch: torch.Tensor) -> Any:
            self.batches.append(len(batch))
            outputs = graph(batch)
            return tuple(self.scale * each for each in outputs)

        return run

    def save(self, compiled: Any, path: str, **options: Any) -> None:
        self.saved = options
        Path(path).write_bytes(b"a program")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put it in the place of torch-tensorrt, on a machine whose GPU is its CPU."""
    made = StandIn()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    return made


def test_a_program_is_compared_and_then_saved(exported: Any, stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "run" / "model.pt2"
    options = {"batch_sizes": (1, 4, 8), "rows": exported.images(20), "gate": GATES["fp32"]}
    compared = program_from_graph(exported.graph, exported.signature, path, **options, workspace_mib=2)
    assert compared.passed, compared.reasons
    assert path.read_bytes() == b"a program"
    assert [each.name for each in path.parent.iterdir()] == ["model.pt2"]
    # Whole batches of each size of the profile: 20 of 1, 5 of 4, 2 of 8.
    assert stand_in.batches == [1] * 20 + [4] * 5 + [8] * 2
    (taken,) = stand_in.compiled["arg_inputs"]
    assert (taken.min_shape, taken.opt_shape, taken.max_shape) == ((1, 6, 5, 2), (4, 6, 5, 2), (8, 6, 5, 2))
    assert taken.dtype == torch.uint8
    assert (stand_in.compiled["ir"], stand_in.compiled["disable_tf32"]) == ("dynamo", True)
    assert stand_in.compiled["workspace_size"] == 2 << 20
    # The free batch is kept by saving with the same bounds.
    assert stand_in.saved == {"output_format": "exported_program", "arg_inputs": [taken]}


def test_another_model_is_refused_and_not_saved(exported: Any, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.scale = 1.01
    options = {"batch_sizes": (1,), "rows": exported.images(4), "gate": GATES["fp32"]}
    with pytest.raises(GateError, match="compiled by torch-tensorrt is another model: max error / std is"):
        program_from_graph(exported.graph, exported.signature, tmp_path / "model.pt2", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_its_compiler_says_is_in_the_error(
    exported: Any, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: object, **options: object) -> None:
        raise RuntimeError("no converter\nfor aten.wobble")

    monkeypatch.setattr(stand_in, "compile", refuse)
    options = {"batch_sizes": (1,), "rows": exported.images(4), "gate": GATES["fp32"]}
    with pytest.raises(ExportError, match=r"cannot compile the student: no converter for aten\.wobble"):
        program_from_graph(exported.graph, exported.signature, tmp_path / "model.pt2", **options)


def test_no_gpu_or_no_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExportError, match="builds on the GPU that it builds for, and torch finds none here"):
        torch_tensorrt_module()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match="torch-tensorrt does not import"):
        torch_tensorrt_module()


@pytest.mark.gpu
def test_a_real_program_gives_the_same_logits(exported: Any, tmp_path: Path) -> None:
    try:
        torch_tensorrt_module()
    except (ExportError, MissingExtraError) as error:
        pytest.skip(error.message)
    path = tmp_path / "model.pt2"
    rows = exported.images(64)
    gate = GATES["fp16"]
    program_from_graph(exported.graph, exported.signature, path, batch_sizes=(1, 8, 64), rows=rows, gate=gate)
    loaded = torch.export.load(path).module()
    for size in (1, 8, 64):
        logits, *_ = loaded(torch.from_numpy(rows[:size]).cuda())
        np.testing.assert_allclose(logits.cpu(), exported.torch_outputs(rows[:size])[0], rtol=1e-2, atol=1e-2)
