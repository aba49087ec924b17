"""From a recipe to ordered stages with content keys; the only place where a stage's settings are resolved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.datasets import DataSpec, Declaration, describe, fingerprint
from compress.datasets.augment import Augmentation
from compress.kinds import as_recipe_value
from compress.models import Classifier, Profile, parameter_count, profile_of
from compress.objectives import Heads
from compress.published import ExpectSpec
from compress.ready_made import ReadyMade
from compress.recipe import Recipe, StageSpec, TrainSpec
from compress.recipe_checks import heads_of, require_fitting_models
from compress.scale import with_smaller_batches
from compress.variants import Variant
from export.graph import InputSignature
from runtime.files import sha256_of_bytes

# Part of every key: raised when the same recipe would no longer give the same weights.
FORMAT_VERSION = 2


@dataclass(frozen=True)
class StagePlan:
    """One training stage with everything resolved. Equal keys mean equal weights (on a CPU, to the bit).

    taught_by: its teachers in order; `teachers` are those of them that are stages.
    """

    name: str
    key: str
    seed: int
    spec: StageSpec
    train: TrainSpec
    heads: Heads
    signature: InputSignature
    augment: tuple[Augmentation, ...]
    teachers: tuple[str, ...]
    init_from: str | None
    parameters: int
    expect: ExpectSpec | None
    resolved: Mapping[str, Any]
    taught_by: tuple[str | ReadyMade, ...] = ()

    @property
    def outputs(self) -> int:
        return self.heads.classes * self.heads.subclasses

    @property
    def parents(self) -> tuple[str, ...]:
        """Return the names of the stages whose weights this one reads."""
        return (*self.teachers, *([self.init_from] if self.init_from else []))

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Return what each teacher is called: its stage, or its file."""
        return tuple(each if isinstance(each, str) else each.name for each in self.taught_by)

    @property
    def profile(self) -> Profile:
        return profile_of(self.spec.network, signature=self.signature, outputs=self.outputs)

    def build_model(self) -> Classifier:
        return self.spec.network.build(signature=self.signature, outputs=self.outputs)


@dataclass(frozen=True)
class Plan:
    """The stages of one variant in running order, and the key of what it exports."""

    variant: Variant
    declaration: Declaration
    fingerprint: str
    stages: tuple[StagePlan, ...]

    @property
    def recipe(self) -> Recipe:
        return self.variant.recipe

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def key(self) -> str:
        """Return the key of the deployed stage and of how it is exported."""
        export = self.recipe.export.settings if self.recipe.export else None
        return _key({"stage": self.stage(self.recipe.exported_stage).key, "export": export})

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)


def plan(variant: Variant, data_root: Path | None) -> Plan:
    """Resolve one variant.

    Raises DataError when the data is not where it should be, RecipeError when the models do not fit it.
    """
    recipe = variant.recipe
    declaration = describe(recipe.data, data_root)
    require_fitting_models(recipe, declaration)
    content = fingerprint(recipe.data, data_root)
    planned: dict[str, StagePlan] = {}
    for name in recipe.stages:
        planned[name] = _plan_stage(name, variant, declaration, content, planned)
    return Plan(variant, declaration, content, tuple(planned.values()))


def _plan_stage(
    name: str, variant: Variant, declaration: Declaration, content: str, earlier: Mapping[str, StagePlan]
) -> StagePlan:
    recipe, seed = variant.recipe, variant.seed
    spec, train = recipe.stages[name], _train_spec(variant, name, declaration)
    heads = heads_of(recipe, name, declaration)
    assert declaration.signature is not None  # describe() fills it
    taught_by = tuple(each if isinstance(each, str) else each.read() for each in spec.teacher or ())
    parents = {
        "teachers": [earlier[each].key if isinstance(each, str) else each.identity for each in taught_by],
        "init_from": earlier[spec.init_from].key if spec.init_from else None,
    }
    resolved = {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "data": {"content": content, **data_settings(recipe.data)},
        "model": spec.model.resolved(),
        **({"quantize": spec.quantize.model_dump(mode="json")} if spec.quantize else {}),
        "classes": heads.classes,
        "subclasses": heads.subclasses,
        "objective": [as_recipe_value(term) for term in spec.objective],
        "ensemble": spec.ensemble,
        "labels": spec.labels.model_dump(mode="json") if spec.labels else None,
        "train": train.model_dump(mode="json"),
        "parents": parents,
    }
    return StagePlan(
        name=name,
        key=_key(resolved),
        seed=seed,
        spec=spec,
        train=train,
        heads=heads,
        signature=declaration.signature,
        augment=recipe.data.augment,
        teachers=spec.teachers,
        init_from=spec.init_from,
        parameters=parameter_count(
            spec.network, signature=declaration.signature, outputs=heads.classes * heads.subclasses
        ),
        expect=recipe.expectations().get(name),
        resolved=resolved,
        taught_by=taught_by,
    )


def _train_spec(variant: Variant, stage: str, declaration: Declaration) -> TrainSpec:
    train = variant.recipe.train_spec(stage)
    if variant.scale == 1:
        return train
    assert declaration.rows is not None  # describe() fills it
    labels = variant.recipe.stages[stage].labels
    alone = labels is not None and labels.rest == "leave_out"
    return with_smaller_batches(train, labels.rows if labels is not None and alone else declaration.rows["train"])


def data_settings(data: DataSpec) -> dict[str, Any]:
    """Return what of `data:` decides the rows, beside their content: never where they lie, or whether they are held."""
    settings = data.model_dump(mode="json", exclude={"root"})
    for options in settings["source"].values():
        options.pop("path", None)
        options.pop("stream", None)
        if tokenizer := options.get("features", {}).get("tokenizer"):
            del tokenizer["name"]  # its content is part of the data's
    return settings


def _key(value: Any) -> str:
    return sha256_of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
