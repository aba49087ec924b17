"""What training on a grid costs: a step of a model in float, with `quantize:`, and with Brevitas' own layers.

    python benchmarks/quantize_overhead.py --threads 1 [--rounds 7]

Forward, backward and SGD of WRN-16-1 on one random batch of 32×32 images, in turn, in bfloat16 and float32. Brevitas'
layers have the same bits, weights with a step for each channel and inputs with one, both found from statistics.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from alternately import in_turn
from torch import nn

from compress.layers.quant import QuantLayer
from compress.models.base import Classifier
from compress.models.wrn import WideResNetSpec
from compress.quantize import QuantizedSpec, QuantizeSpec
from export.graph import InputSignature

IMAGES = InputSignature((32, 32, 3))


def with_brevitas(model: Classifier) -> Classifier:
    """Return a quantised model with Brevitas' layers in the place of our own."""
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    model = copy.deepcopy(model)
    for name, layer in [(name, each) for name, each in model.named_modules() if isinstance(each, QuantLayer)]:
        options = {
            "bias": layer.bias is not None,
            "weight_quant": Int8WeightPerChannelFloat,
            "weight_bit_width": layer.weight_bits,
            "input_quant": Int8ActPerTensorFloat,
            "input_bit_width": layer.input_bits,
        }
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.kernel_size, layer.stride, layer.padding)
            other = QuantConv2d(layer.in_channels, layer.out_channels, *sizes, **options)
        else:
            other = QuantLinear(layer.in_features, layer.out_features, **options)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, other)
    return model


def stepping(model: Classifier, precision: str, rows: int) -> Callable[[], None]:
    """Return a function that takes one step on a batch of its own."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(rows, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (rows,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x).logits
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", type=int, default=4)
    parser.add_argument("--activations", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = WideResNetSpec(depth=16, widen=1)
    quantize = QuantizeSpec(weights=options.weights, activations=options.activations)
    few = QuantizedSpec(model=spec, quantize=quantize).build(signature=IMAGES, outputs=10)
    models = {
        "float": spec.build(signature=IMAGES, outputs=10),
        str(quantize): few,
        f"{quantize}, Brevitas": with_brevitas(few),
    }
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.rows} rows a step, milliseconds")
    for precision in ("bf16", "fp32"):
        steps = {
            name: stepping(copy.deepcopy(model).train(), precision, options.rows) for name, model in models.items()
        }
        times = in_turn(steps, options.rounds, threads=options.threads)
        print(precision, ", ".join(f"{name}: {statistics.median(each) / 1000:.0f}" for name, each in times.items()))


if __name__ == "__main__":
    main()
