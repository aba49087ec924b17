"""What a valid recipe will regret: said by `edgefold check`, `plan` and `run`, and stopping none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.models.binary import BinarySpec
from compress.recipe import Recipe
from compress.variants import Variant


def warnings_of(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return each warning once, however many runs of the recipe have it."""
    found = (warning for variant in variants for warning in _warnings(variant.recipe))
    return tuple(dict.fromkeys(found))


def _warnings(recipe: Recipe) -> Iterator[str]:
    for name, stage in recipe.stages.items():
        optimizer = recipe.train_spec(name).optimizer
        latent = isinstance(stage.model, BinarySpec) and stage.model.form.latent
        if latent and optimizer.decays_latent():
            yield (
                f"stages.{name}: {optimizer.kind} decays the latent weights of {stage.model.kind}: of their size "
                "nothing is deployed, and the nearer to 0 they are the more signs the gradient's noise turns over, "
                "so that training does not settle. Say `decay: weights`, which spares them, or weight_decay: 0."
            )
