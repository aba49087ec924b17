"""Layers of few bits, and what must stand around them so that every engine computes the same bits.

A sign at zero turns over by one rounding. In evaluation mode each layer here therefore computes by steps that every
engine rounds alike: sums of integers below 2^24, which are exact in any order, then one product and one sum.
`for_export` returns that arithmetic as a module of constants (`export.layers`).
"""

from __future__ import annotations

from compress.layers.binary import BinaryConv2d, BinaryLinear
from compress.layers.fixed_point import FixedPointConv2d
from compress.layers.form import Activations, LayerForm, Scale, Weights
from compress.layers.latent import latent_weights, set_progress
from compress.layers.norm import TwoStepNorm1d, TwoStepNorm2d
from compress.layers.pooling import HalvingPool
from compress.layers.prelu import ChannelPReLU
from compress.layers.signs import STE, sign, straight_through_sign

__all__ = [
    "STE",
    "Activations",
    "BinaryConv2d",
    "BinaryLinear",
    "ChannelPReLU",
    "FixedPointConv2d",
    "HalvingPool",
    "LayerForm",
    "Scale",
    "TwoStepNorm1d",
    "TwoStepNorm2d",
    "Weights",
    "latent_weights",
    "set_progress",
    "sign",
    "straight_through_sign",
]
