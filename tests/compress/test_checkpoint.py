from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.checkpoint import (
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from compress.optimization import AdamSpec, AdamWSpec, OptimizerSpec, SGDSpec

KEY = "a" * 64


def save(folder: Path, step: int, value: float = 0.0, key: str = KEY) -> None:
    save_checkpoint(folder, step, {"w": torch.full((3,), value)}, {"step": step}, key=key)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    tensors = {
        "single": torch.tensor([1e-45, -0.0, torch.inf, torch.pi]),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "whole": torch.tensor([[2**62, -1]]),
        "bytes": torch.get_rng_state(),
        "flag": torch.tensor(True),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "trained": nn.Parameter(torch.ones(2)),
    }
    state = {"epoch": 3, "loss": 0.1, "best": None, "history": [1, 2.5, "x"], "name": "ä"}
    save_checkpoint(tmp_path / "new" / "folder", 42, tensors, state, key=KEY)
    checkpoint, damaged = newest_checkpoint(tmp_path / "new" / "folder", key=KEY)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state, damaged) == (42, state, [])
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        restored = checkpoint.tensors[name]
        assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(restored, tensor.detach())
    assert torch.signbit(checkpoint.tensors["single"][1])


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    save_checkpoint(tmp_path, 1, {"a": weight, "tied": weight, "view": weight[:3]}, {}, key=KEY)
    checkpoint, _ = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    assert checkpoint.tensors["tied"].tolist() == weight.tolist()
    assert checkpoint.tensors["view"].tolist() == [0, 1, 2]


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 900, 1000, 20_000):
        save(tmp_path, step)
    expected = ["0000001000.json", "0000001000.safetensors", "0000020000.json", "0000020000.safetensors"]
    assert names(tmp_path) == expected


def test_the_newest_is_the_one_with_the_most_steps(tmp_path: Path) -> None:
    save(tmp_path, 9, 1.0)
    save(tmp_path, 10, 2.0)
    checkpoint, _ = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert checkpoint.tensors["w"].tolist() == [2.0] * 3


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3, 1.0)
    save(tmp_path, 3, 2.0)
    checkpoint, damaged = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    assert checkpoint.tensors["w"].tolist() == [2.0] * 3
    assert damaged == []
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint(tmp_path: Path, exists: bool) -> None:
    assert newest_checkpoint(tmp_path if exists else tmp_path / "none", key=KEY) == (None, [])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_a_header_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{")


def edit(**changes: Any) -> Any:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def drop(name: str) -> Any:
    def change(path: Path) -> None:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != name}))

    return change


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("safetensors", flip_a_bit),
        ("safetensors", flip_a_header_bit),
        ("safetensors", truncate),
        ("safetensors", empty),
        ("safetensors", Path.unlink),
        ("json", truncate),
        ("json", empty),
        ("json", garble),
        ("json", lambda path: path.write_text("[1, 2]")),
        ("json", edit(key="b" * 64)),
        ("json", edit(format_version=99)),
        ("json", edit(sha256="0" * 64)),
        ("json", drop("state")),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path: Path, suffix: str, damage: Any) -> None:
    save(tmp_path, 10, 1.0)
    save(tmp_path, 20, 2.0)
    damage(tmp_path / f"0000000020.{suffix}")
    checkpoint, damaged = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert checkpoint.tensors["w"].tolist() == [1.0] * 3
    assert checkpoint.state == {"step": 10}
    assert damaged == ["0000000020"]


def test_without_its_json_a_checkpoint_does_not_exist(tmp_path: Path) -> None:
    # What a run leaves that is killed between the two files: not damage, so not worth a warning.
    save(tmp_path, 10, 1.0)
    save(tmp_path, 20, 2.0)
    (tmp_path / "0000000020.json").unlink()
    checkpoint, damaged = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert damaged == []


def test_when_all_are_damaged_all_are_named_from_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    for path in tmp_path.glob("*.safetensors"):
        flip_a_bit(path)
    assert newest_checkpoint(tmp_path, key=KEY) == (None, ["0000000020", "0000000010"])


def test_another_stages_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, 10, key="b" * 64)
    assert newest_checkpoint(tmp_path, key=KEY) == (None, ["0000000010"])


def test_a_state_that_json_cannot_say_leaves_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 20, {"w": torch.ones(1)}, {"loss": float("nan")}, key=KEY)
    checkpoint, damaged = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert damaged == []


# Optimizers


def training(spec: OptimizerSpec) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, spec.build(model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


SPECS = [
    SGDSpec(weight_decay=1e-3, decay="weights"),
    SGDSpec(nesterov=False),
    SGDSpec(momentum=0.0),
    AdamSpec(lr=0.1, weight_decay=1e-3),
    AdamWSpec(lr=0.1, decay="weights"),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_restored_optimizer_goes_on_with_the_same_bits(tmp_path: Path, spec: OptimizerSpec) -> None:
    model, optimizer = training(spec)
    train(model, optimizer, range(4))
    tensors = with_prefix("model", model.state_dict()) | with_prefix("optimizer", optimizer_tensors(optimizer))
    save_checkpoint(tmp_path, 4, tensors, {}, key=KEY)
    train(model, optimizer, range(4, 9))

    checkpoint, _ = newest_checkpoint(tmp_path, key=KEY)
    assert checkpoint is not None
    other, resumed = training(spec)
    other.load_state_dict(without_prefix("model", checkpoint.tensors))
    restore_optimizer(resumed, without_prefix("optimizer", checkpoint.tensors))
    train(other, resumed, range(4, 9))

    assert_same(other.state_dict(), model.state_dict())
    assert_same(optimizer_tensors(resumed), optimizer_tensors(optimizer))


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3]], ids=repr)
def test_the_optimizers_state_matters(spec: OptimizerSpec) -> None:
    # Guards the test above: without the state the two runs part.
    model, optimizer = training(spec)
    train(model, optimizer, range(4))
    other, fresh = training(spec)
    other.load_state_dict(model.state_dict())
    train(model, optimizer, range(4, 6))
    train(other, fresh, range(4, 6))
    assert not torch.equal(other[0].weight, model[0].weight)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


def test_restoring_keeps_the_rates_that_the_recipe_built() -> None:
    model, optimizer = training(AdamSpec(lr=0.5, weight_decay=0.25, decay="weights"))
    train(model, optimizer, range(2))
    _, resumed = training(AdamSpec(lr=0.5, weight_decay=0.25, decay="weights"))
    restore_optimizer(resumed, optimizer_tensors(optimizer))
    assert [(group["lr"], group["weight_decay"]) for group in resumed.param_groups] == [
        (0.5, 0.25),
        (0.5, 0.0),
    ]


def test_an_optimizer_that_has_not_stepped_has_no_tensors() -> None:
    _, optimizer = training(AdamSpec())
    assert optimizer_tensors(optimizer) == {}
    restore_optimizer(optimizer, {})
    assert optimizer_tensors(optimizer) == {}


def test_prefixes_are_put_on_and_taken_off() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    both = with_prefix("model", {"x.weight": a}) | with_prefix("model_best", {"x.weight": b})
    assert both.keys() == {"model.x.weight", "model_best.x.weight"}
    assert without_prefix("model", both) == {"x.weight": a}
    assert without_prefix("model_best", both) == {"x.weight": b}
