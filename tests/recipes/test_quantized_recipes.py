"""The recipes of quantised students: what they take from others, and what they begin with."""

from __future__ import annotations

from compress.library import shipped_recipes
from compress.recipe import Recipe, load_recipe


def shipped(name: str) -> Recipe:
    return load_recipe(shipped_recipes()[name])[0]


def test_the_float_stages_are_those_of_the_srrl_recipe_and_so_trained_once() -> None:
    mine, theirs = shipped("quantized/cifar10-4bit"), shipped("srrl/cifar10-short")
    assert (mine.data, mine.all_seeds) == (theirs.data, theirs.all_seeds)
    for name in ("teacher", "kd"):
        assert mine.stages[name] == theirs.stages[name]
        assert mine.train_spec(name) == theirs.train_spec(name)


def test_quantised_stages_differ_in_bits_alone_and_continue_the_float_student() -> None:
    stages = shipped("quantized/cifar10-4bit").stages
    bits = {name: str(stage.quantize) for name, stage in stages.items() if stage.quantize}
    assert bits == {"qat2": "W2A8", "qat4": "W4A8"}
    for name in bits:
        stage = stages[name]
        assert (stage.init_from, stage.model, stage.teachers) == ("kd", stages["kd"].model, ("teacher",))
        assert stage.objective == stages["kd"].objective
        assert stage.train == stages["qat4"].train
