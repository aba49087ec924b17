"""How many bits a layer's weights and inputs have, and what its sums are multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.layers.signs import STE

Weights = Literal["binary", "ternary", "int2", "int4", "int8", "real"]
Activations = Literal["binary", "int2", "int4", "int8", "real"]
Scale = Literal["none", "mean_abs", "xnor_k", "learned", "learned_dense", "learned_map", "learned_factors"]

# Beside "none": in whose place the latent weights' signs say nothing of their sizes.
LEARNED: tuple[Scale, ...] = ("learned", "learned_dense", "learned_map", "learned_factors")
OVER_POSITIONS: tuple[Scale, ...] = ("learned_dense", "learned_map", "learned_factors")

REAL_BITS = 32
BITS: dict[str, int] = {"binary": 1, "ternary": 2, "int2": 2, "int4": 4, "int8": 8, "real": REAL_BITS}


@dataclass(frozen=True)
class LayerForm:
    """The arithmetic of a layer; with `real` weights and activations it is the ordinary layer.

    ste: the gradient of a sign (`signs.straight_through_sign`); of weights it is `clipped` where this is `polynomial`,
    which Liu et al. 2018 use for activations only.

    scale, per output channel:
    - `none`: 1, for a batch norm behind the layer to find.
    - `mean_abs`: the mean of |W| (Rastegari et al. 2016, "XNOR-Net", equation 6); of ternary weights, of those that are
      not 0 (Li, Zhang & Liu 2016, "Ternary weight networks").
    - `xnor_k`: that times the activation map K, the mean of |x| under the kernel's window (XNOR-Net, section 3.2). K is
      a mean of real values, so unlike all others this one is rounded by each engine in its own way.
    - `learned`: one number a channel; `learned_dense`: one for each channel and position; `learned_map`: channel × map
      of positions; `learned_factors`: channel × height × width: cases 1 to 4 of Bulat &
      Tzimiropoulos 2019, "XNOR-Net++".

    int2, int4 and int8 weights have a step of their own, max|W| over the largest level, for `none` and `mean_abs`.
    """

    weights: Weights = "binary"
    activations: Activations = "binary"
    ste: STE = "clipped"
    scale: Scale = "mean_abs"

    @property
    def weight_ste(self) -> STE:
        return "clipped" if self.ste == "polynomial" else self.ste

    @property
    def is_binary(self) -> bool:
        return self.weights == self.activations == "binary"

    @property
    def latent(self) -> bool:
        """Return whether only the signs of the weights count in the end, and not their sizes."""
        return self.weights in ("binary", "ternary")

    @property
    def weight_bits(self) -> int:
        return BITS[self.weights]

    @property
    def input_bits(self) -> int:
        return BITS[self.activations]

    def problem(self) -> str | None:
        """Return why the parts do not go together."""
        if self.scale == "xnor_k" and not {self.weights, self.activations} <= {"binary", "real"}:
            return "scale: xnor_k is for binary weights and activations"
        return None
