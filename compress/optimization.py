"""Optimizers and learning-rate schedules: their options, and how they are built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from compress.kinds import Spec

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSpec(Spec):
    """`decay: weights` leaves biases and norm parameters (one-dimensional ones) without weight decay.

    It also spares latent weights, of which a binary layer deploys the signs (`compress.layers.latent_weights`).
    """

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay: Literal["all", "weights"] = "all"

    def build(self, parameters: Iterable[nn.Parameter], latent: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """Return the optimizer of `parameters`, of which `latent` are latent weights."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def decays_latent(self) -> bool:
        return self.weight_decay > 0 and self.decay == "all"

    def _groups(self, parameters: Iterable[nn.Parameter], latent: Iterable[nn.Parameter]) -> list[dict[str, object]]:
        parameters, spared = list(parameters), set(latent)
        if self.decay == "all":
            return [{"params": parameters, "weight_decay": self.weight_decay}]
        weights = [p for p in parameters if p.ndim > 1 and p not in spared]
        rest = [p for p in parameters if p.ndim <= 1 or p in spared]
        return [{"params": weights, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]


class SGDSpec(OptimizerSpec):
    kind = "sgd"

    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True

    def build(self, parameters: Iterable[nn.Parameter], latent: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        groups = self._groups(parameters, latent)
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov)


# From here on, in numbers of one tensor, Adam's temporaries fall out of the cache: on one core of an EPYC a step of a
# 32,768 × 64 table took 27.9 ms, fused 3.8 ms. Both round differently, so smaller models keep the plain step.
FUSED_FROM = 1 << 20


def _fused(parameters: Sequence[nn.Parameter]) -> bool | None:
    """Return whether Adam should take its fused step; None leaves the choice to PyTorch."""
    large = any(p.numel() >= FUSED_FROM for p in parameters)
    return True if large and all(p.device.type == "cpu" for p in parameters) else None


class AdamSpec(OptimizerSpec):
    kind = "adam"

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)

    def build(self, parameters: Iterable[nn.Parameter], latent: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        return torch.optim.Adam(**self._options(parameters, latent))

    def _options(self, parameters: Iterable[nn.Parameter], latent: Iterable[nn.Parameter]) -> dict[str, Any]:
        parameters = list(parameters)
        return {
            "params": self._groups(parameters, latent),
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "fused": _fused(parameters),
        }


class AdamWSpec(AdamSpec):
    kind = "adamw"

    weight_decay: float = Field(1e-2, ge=0)

    def build(self, parameters: Iterable[nn.Parameter], latent: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        return torch.optim.AdamW(**self._options(parameters, latent))


OPTIMIZERS: dict[str, type[OptimizerSpec]] = {"sgd": SGDSpec, "adam": AdamSpec, "adamw": AdamWSpec}


class ScheduleSpec(Spec):
    def factor(self, epoch: float, epochs: int) -> float:
        """Return what the learning rate is multiplied by, `epoch` (fractional) epochs into `epochs`."""
        raise NotImplementedError(f"{type(self).__name__} must define factor")

    def scaled(self, factor: float) -> ScheduleSpec:
        """Return the schedule of a run with `factor` times as many epochs; the same where no option counts epochs."""
        return self


class ConstantSpec(ScheduleSpec):
    kind = "constant"

    def factor(self, epoch: float, epochs: int) -> float:
        return 1.0


class StepSpec(ScheduleSpec):
    """The rate is multiplied by `gamma` at the start of each of the epochs `at` (counted from 0)."""

    kind = "step"

    at: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    gamma: float = Field(0.1, gt=0, le=1)

    def factor(self, epoch: float, epochs: int) -> float:
        return self.gamma ** sum(epoch >= at for at in self.at)

    def scaled(self, factor: float) -> StepSpec:
        return self.model_copy(update={"at": tuple(max(1, round(factor * at)) for at in self.at)})


class CosineSpec(ScheduleSpec):
    """Half a cosine from the full rate down to `end` times it."""

    kind = "cosine"

    end: float = Field(0.0, ge=0, le=1)

    def factor(self, epoch: float, epochs: int) -> float:
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))


SCHEDULES: dict[str, type[ScheduleSpec]] = {"constant": ConstantSpec, "step": StepSpec, "cosine": CosineSpec}


def rate_factor(schedule: ScheduleSpec, *, epoch: float, epochs: int, warmup_epochs: float) -> float:
    """Return the factor of `schedule`, with a linear warm-up multiplied on."""
    warmup = min(1.0, epoch / warmup_epochs) if warmup_epochs > 0 else 1.0
    return warmup * schedule.factor(epoch, epochs)
