"""The recipes of Yang et al. 2021 (SRRL): printed sizes, the CRD benchmark's settings, and published cells."""

from __future__ import annotations

from functools import cache

import pytest

from compress.datasets import declare
from compress.library import find_recipe
from compress.models import parameter_count
from compress.variants import Variant, load_variants

# Printed numbers of parameters in millions, teacher and student.
PRINTED = {
    "srrl-cifar10": {
        "WRN-16-2 → WRN-16-1": ("0.69", "0.18"),
        "WRN-40-2 → WRN-16-2": ("2.2", "0.69"),
        "ResNet-26 → ResNet-8": ("0.37", "0.08"),
        "ResNet-26 → ResNet-14": ("0.37", "0.17"),
        "ResNet-34 → ResNet-18": ("1.4", "0.7"),
        "ResNet-26 → WRN-16-1": ("0.37", "0.18"),
    },
    "srrl-cifar100": {
        "WRN-40-4 → WRN-16-4": ("8.97", "2.77"),
        "WRN-40-4 → WRN-16-2": ("8.97", "0.70"),
        "WRN-16-10 → WRN-10-10": ("17.2", "7.49"),
        "ResNet-34 → ResNet-10": ("1.39", "0.34"),
        "ResNet-34 → ResNet-18": ("1.39", "0.75"),
        "wide ResNet-34 → wide ResNet-10": ("21.33", "4.95"),
        "ResNet-34 → MobileNetV2": ("1.39", "2.37"),
    },
}


@cache
def rows_of(name: str) -> dict[str, Variant]:
    """Return one variant a row of the sweep, by label."""
    return {variant.label: variant for variant in load_variants(find_recipe(f"srrl/{name}")) if variant.seed == 0}


@pytest.mark.parametrize("name", PRINTED)
def test_networks_of_each_row_have_as_many_parameters_as_printed(name: str) -> None:
    rows = rows_of(name)
    assert list(rows) == list(PRINTED[name])
    for label, printed in PRINTED[name].items():
        recipe = rows[label].recipe
        declaration = declare(recipe.data)
        assert declaration.signature
        assert declaration.classes
        for stage, expected in zip(("teacher", "srrl"), printed, strict=True):
            count = parameter_count(
                recipe.stages[stage].model, signature=declaration.signature, outputs=declaration.classes
            )
            assert f"{count / 1e6:.{len(expected.partition('.')[2])}f}" == expected, (label, stage)


@pytest.mark.parametrize("name", ["srrl-crd-same", "srrl-crd-different"])
def test_crd_benchmark_has_the_schedule_of_its_code(name: str) -> None:
    for label, variant in rows_of(name).items():
        recipe = variant.recipe
        light = any(word in label.split(" → ")[1] for word in ("MobileNet", "ShuffleNet"))
        for stage in recipe.stages:
            train = recipe.train_spec(stage)
            own = (train.epochs, train.batch_size, train.optimizer.lr, train.optimizer.nesterov)
            epochs = 30 if stage.endswith("_start") else 240
            assert own == (epochs, 64, 0.01 if light and stage != "teacher" else 0.05, False), (label, stage)
            assert train.optimizer.weight_decay == 5e-4
        assert recipe.train.schedule.at == (150, 180, 210)


def test_crd_benchmark_has_the_cells_of_its_readme() -> None:
    cells = {
        label: {name: each.test_accuracy_percent.mean for name, each in variant.recipe.expectations().items()}
        for name in ("srrl-crd-same", "srrl-crd-different")
        for label, variant in rows_of(name).items()
    }
    assert len(cells) == 13
    assert {label: (row["teacher"], row["plain"], row["kd"], row["crd"]) for label, row in cells.items()} == {
        "WRN-40-2 → WRN-16-2": (75.61, 73.26, 74.92, 75.48),
        "WRN-40-2 → WRN-40-1": (75.61, 71.98, 73.54, 74.14),
        "resnet56 → resnet20": (72.34, 69.06, 70.66, 71.16),
        "resnet110 → resnet20": (74.31, 69.06, 70.67, 71.46),
        "resnet110 → resnet32": (74.31, 71.14, 73.08, 73.48),
        "resnet32x4 → resnet8x4": (79.42, 72.50, 73.33, 75.51),
        "vgg13 → vgg8": (74.64, 70.36, 72.98, 73.94),
        "vgg13 → MobileNetV2": (74.64, 64.60, 67.37, 69.73),
        "ResNet-50 → MobileNetV2": (79.34, 64.60, 67.35, 69.11),
        "ResNet-50 → vgg8": (79.34, 70.36, 73.81, 74.30),
        "resnet32x4 → ShuffleNetV1": (79.42, 70.50, 74.07, 75.11),
        "resnet32x4 → ShuffleNetV2": (79.42, 71.82, 74.45, 75.65),
        "WRN-40-2 → ShuffleNetV1": (75.61, 70.50, 74.83, 76.05),
    }
    assert "fsp" not in cells["WRN-40-2 → WRN-40-1"]  # printed as 0.00
    assert not any("srrl" in row for row in cells.values())


def test_positions_are_the_maps_that_wide_residual_networks_have() -> None:
    (variant,) = rows_of("srrl-positions").values()
    positions = {
        name: [term.position for term in stage.objective if term.kind == "srrl"]
        for name, stage in variant.recipe.stages.items()
        if stage.teachers
    }
    assert positions == {
        "matching": ["last"],
        "regression": ["last"],
        "conv4": ["last"],
        "conv3": ["conv3"],
        "conv2": ["conv2"],
        "conv3_conv4": ["last", "conv3"],
        "conv2_conv3_conv4": ["last", "conv3", "conv2"],
    }
    parts = {name: variant.recipe.stages[name].objective[1] for name in ("matching", "regression", "conv4")}
    assert {name: (term.feature_matching, term.softmax_regression) for name, term in parts.items()} == {
        "matching": (1, 0), "regression": (0, 1), "conv4": (1, 1)
    }  # fmt: skip


def test_weights_are_chosen_on_validation_rows_only() -> None:
    rows = rows_of("srrl-loss-weights")
    for label, variant in rows.items():
        assert variant.recipe.data.validation == 0.1
        term = variant.recipe.stages["student"].objective[1]
        assert label == f"{term.feature_matching:g}, {term.softmax_regression:g}"
    assert {"1, 1", "1, 5", "10, 1"} <= set(rows)


@pytest.mark.parametrize(
    "name",
    [
        "srrl-cifar10",
        "srrl-cifar100",
        "srrl-crd-same",
        "srrl-crd-different",
        "srrl-likeness",
        "srrl-with-kd-and-at",
        "table-8-cifar100",
        "table-8-imagenet",
    ],
)
def test_losses_are_means_as_in_the_published_code(name: str) -> None:
    for variant in rows_of(name).values():
        terms = [term for stage in variant.recipe.stages.values() for term in stage.objective if term.kind == "srrl"]
        assert terms
        assert {term.reduction for term in terms} == {"code"}


def test_table_8_has_the_papers_cells_and_begins_from_real_weights() -> None:
    cells = {}
    for name in ("table-8-cifar100", "table-8-imagenet"):
        (variant,) = rows_of(name).values()
        recipe = variant.recipe
        cells[name] = {stage: each.test_accuracy_percent.mean for stage, each in recipe.expectations().items()}
        binary = [stage for stage in recipe.stages.values() if stage.model.kind == "binary_resnet"]
        assert {(stage.model.block, stage.model.depth) for stage in binary} == {
            ("bulat", 34 if "cifar" in name else 18)
        }
        for stage in binary:
            assert (stage.model.weights == "real") == (stage.init_from is None)
        for stage in ("start", "plain", "srrl"):
            assert not recipe.train_spec(stage).optimizer.decays_latent()
    assert cells == {
        "table-8-cifar100": {"teacher": 75.08, "plain": 65.34, "srrl": 70.50},
        "table-8-imagenet": {"plain": 56.70, "srrl": 59.57},
    }
