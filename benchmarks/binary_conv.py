"""One binary 3×3 convolution beside ONNX Runtime's own, and the kernels beside what the processor allows.

    python benchmarks/binary_conv.py [--rounds 60] [--threads 1 2] [--output benchmarks/results/binary_conv.json]

Every candidate is a chain of convolutions C → C of the same form, batch 1, and its time is that of the chain divided
by its length, so that the cost of calling the engine does not hide what is compared. All candidates run in turn
(`alternately.py`); a figure is the median, and a ratio one of medians.

- fp32: Conv. int8: QLinearConv with uint8 activations and int8 weights, per channel. int8 Q/DQ: float in and out.
- packed: Binarize and BinaryConv for each convolution, float in and out. packed chain: what the exporter makes of
  x + conv(sign(x)) * scale + bias: the signs of the next layer are made by the one before.
- portable: the same chain on standard operators, which needs no custom operator.

The kernels alone, and the bound of xor, popcount and add on registers, come from `runtime/ops/bench/kernels.cc`, which
is built in a temporary folder; without CMake and a C++ compiler that part is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from alternately import in_turn, summary
from onnx import TensorProto, helper, numpy_helper

from export.to_packed import packed_from_onnx, packed_weights
from export.to_portable import portable_from_onnx
from runtime.custom_ops import INSTRUCTION_SET, library_path
from runtime.device import read_environment
from runtime.files import write_json

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
CHAIN = 8
FORCED = ("avx512", "avx2", "popcnt")  # instruction sets to measure beside the one that is chosen
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("edgefold", 1)]

Nodes = list[onnx.NodeProto]
Constants = dict[str, np.ndarray]


def model_of(nodes: Nodes, constants: Constants, input: tuple[str, int, list[int]], output: tuple[str, int]) -> bytes:
    name, kind, shape = input
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(output[0], output[1], None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return bytes(helper.make_model(graph, opset_imports=OPSETS, ir_version=10).SerializeToString())


def fp32(C: int, side: int, rng: np.random.Generator) -> bytes:
    """Conv after Conv; weights so small that values stay finite."""
    nodes, constants = [], {}
    for i in range(CHAIN):
        constants[f"w{i}"] = (rng.standard_normal((C, C, 3, 3)) / (3 * np.sqrt(C))).astype(np.float32)
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1] * 4))
    return model_of(nodes, constants, ("x0", TensorProto.FLOAT, [1, C, side, side]), (f"x{CHAIN}", TensorProto.FLOAT))


def int8_weights(C: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(-127, 128, (C, C, 3, 3), dtype=np.int8), np.full(C, 1 / (127 * 3 * np.sqrt(C)), np.float32)


def int8(C: int, side: int, rng: np.random.Generator) -> bytes:
    nodes, constants = [], {"scale": np.float32(0.02), "zero": np.uint8(128), "none": np.zeros(C, np.int8)}
    for i in range(CHAIN):
        constants[f"w{i}"], constants[f"s{i}"] = int8_weights(C, rng)
        inputs = [f"x{i}", "scale", "zero", f"w{i}", f"s{i}", "none", "scale", "zero"]
        nodes.append(helper.make_node("QLinearConv", inputs, [f"x{i + 1}"], pads=[1] * 4))
    return model_of(nodes, constants, ("x0", TensorProto.UINT8, [1, C, side, side]), (f"x{CHAIN}", TensorProto.UINT8))


def int8_qdq(C: int, side: int, rng: np.random.Generator) -> bytes:
    """Each convolution quantises its float input and gives floats, as a lone INT8 layer in a float graph does."""
    nodes, constants = [], {"scale": np.float32(0.02), "zero": np.uint8(128), "none": np.zeros(C, np.int8)}
    for i in range(CHAIN):
        constants[f"w{i}"], constants[f"s{i}"] = int8_weights(C, rng)
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{i}", "scale", "zero"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "scale", "zero"], [f"d{i}"]),
            helper.make_node("DequantizeLinear", [f"w{i}", f"s{i}", "none"], [f"f{i}"], axis=0),
            helper.make_node("Conv", [f"d{i}", f"f{i}"], [f"y{i}"], pads=[1] * 4),
            # A real operator between two layers, or the pairs of neighbours would be merged into a chain of INT8.
            helper.make_node("QuantizeLinear", [f"y{i}", "scale", "zero"], [f"r{i}"]),
            helper.make_node("DequantizeLinear", [f"r{i}", "scale", "zero"], [f"e{i}"]),
            helper.make_node("Neg", [f"e{i}"], [f"x{i + 1}"]),
        ]
    return model_of(nodes, constants, ("x0", TensorProto.FLOAT, [1, C, side, side]), (f"x{CHAIN}", TensorProto.FLOAT))


def binary_weights(C: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(np.float32([-1, 1]), (C, C, 3, 3))


def packed(C: int, side: int, rng: np.random.Generator) -> bytes:
    nodes, constants = [], {"scale": np.full(C, 0.01, np.float32), "bias": np.zeros(C, np.float32)}
    for i in range(CHAIN):
        constants[f"w{i}"] = packed_weights(binary_weights(C, rng))
        inputs = [f"b{i}", f"w{i}", "scale", "bias"]
        nodes += [
            helper.make_node("Binarize", [f"x{i}"], [f"b{i}"], domain="edgefold"),
            helper.make_node("BinaryConv", inputs, [f"x{i + 1}"], domain="edgefold", channels=C, pads=[1] * 4),
        ]
    return model_of(nodes, constants, ("x0", TensorProto.FLOAT, [1, side, side, C]), (f"x{CHAIN}", TensorProto.FLOAT))


def simulated_chain(C: int, side: int, rng: np.random.Generator) -> bytes:
    """x + conv(sign(x)) * scale + bias in float, from and to NHWC, as the exporter of a trained student gives it."""
    constants: Constants = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}
    nodes = [helper.make_node("Transpose", ["input"], ["x0"], perm=[0, 3, 1, 2])]
    for i in range(CHAIN):
        constants[f"w{i}"] = binary_weights(C, rng)
        constants[f"s{i}"] = np.full((1, C, 1, 1), 0.01, np.float32)
        constants[f"b{i}"] = rng.standard_normal((1, C, 1, 1)).astype(np.float32)
        nodes += [
            helper.make_node("GreaterOrEqual", [f"x{i}", "zero"], [f"p{i}"]),
            helper.make_node("Where", [f"p{i}", "one", "minus"], [f"g{i}"]),
            helper.make_node("Conv", [f"g{i}", f"w{i}"], [f"c{i}"], pads=[1] * 4),
            helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Add", [f"a{i}", f"x{i}"], [f"x{i + 1}"]),
        ]
    nodes.append(helper.make_node("Transpose", [f"x{CHAIN}"], ["output"], perm=[0, 2, 3, 1]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, side, side, C])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, side, side, C])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=OPSETS[:1], ir_version=10)
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def prepared(model: bytes, threads: int, isa: str = "") -> Callable[[], None]:
    """Return one run of the chain on inputs and outputs that stay where they are."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    before = os.environ.get(INSTRUCTION_SET)
    if isa:
        os.environ[INSTRUCTION_SET] = isa  # read when the operators are created
    try:
        options.register_custom_ops_library(str(library_path()))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    finally:
        os.environ.pop(INSTRUCTION_SET, None)
        if before is not None:
            os.environ[INSTRUCTION_SET] = before
    given, result = session.get_inputs()[0], session.get_outputs()[0]
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, given.shape, np.uint8) if "uint8" in given.type else rng.standard_normal(given.shape)
    x = onnxruntime.OrtValue.ortvalue_from_numpy(array.astype(np.uint8 if "uint8" in given.type else np.float32))
    y = onnxruntime.OrtValue.ortvalue_from_numpy(session.run(None, {given.name: x.numpy()})[0])
    binding = session.io_binding()
    binding.bind_ortvalue_input(given.name, x)
    binding.bind_ortvalue_output(result.name, y)
    return lambda: session.run_with_iobinding(binding)


def candidates(C: int, side: int, threads: int) -> dict[str, Callable[[], None]]:
    rng = np.random.default_rng(0)
    simulated = simulated_chain(C, side, rng)
    packed_model = packed(C, side, rng)
    models = {
        "fp32": fp32(C, side, rng),
        "int8": int8(C, side, rng),
        "int8 Q/DQ": int8_qdq(C, side, rng),
        "packed": packed_model,
        "packed chain": packed_from_onnx(simulated, layers={}),
        "portable": portable_from_onnx(simulated, layers={}, strict=True),
    }
    runs = {name: prepared(model, threads) for name, model in models.items()}
    if threads == 1:
        runs |= {f"packed, {isa}": prepared(packed_model, 1, isa) for isa in FORCED}
    return runs


def measure(threads: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for C, side in SHAPES:
        calls = in_turn(candidates(C, side, threads), rounds, threads=threads)
        times = {name: [each / CHAIN for each in chain] for name, chain in calls.items()}
        row = {"convolution": f"3x3, {C} -> {C}, {side}x{side}", **summary(times, threads=threads)}
        rows.append(row)
        print(f"\n{C}×{side}², {threads} thread(s)")
        for name, each in row["microseconds"].items():
            print(
                f"  {name:18s} {each:9.1f} µs   FP32 / this {row['fp32_over'][name]:6.2f}   "
                f"INT8 / this {row['int8_over'][name]:6.2f}",
                flush=True,
            )
    return rows


def measure_kernels(rounds: int) -> dict[str, Any] | None:
    """Return what `runtime/ops/bench/kernels.cc` prints, with each kernel's share of the roofline."""
    if shutil.which("cmake") is None:
        print("no cmake: the kernels alone are left out", file=sys.stderr)
        return None
    source = Path(__file__).parents[1] / "runtime" / "ops"
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run(["cmake", "-S", source, "-B", folder, "-DEDGEFOLD_BENCHMARKS=ON"], **quiet)
        subprocess.run(["cmake", "--build", folder, "--target", "edgefold_bench_kernels"], **quiet)
        ran = subprocess.run(
            [Path(folder) / "edgefold_bench_kernels", str(rounds)], capture_output=True, check=True, text=True
        )
    result: dict[str, Any] = json.loads(ran.stdout)
    figures = result["median_seconds"]
    rates = {name: each["products"] / each["seconds"] for name, each in figures.items()}
    bound = rates.get("roofline: xor, popcount, add")
    print(f"\nkernels alone, {result['kernels']}")
    for name, each in figures.items():
        each["share_of_roofline"] = rates[name] / bound if bound and each["products"] else None
        share = f"   {each['share_of_roofline']:.1%} of the roofline" if each["share_of_roofline"] else ""
        print(f"  {name:30s} {each['seconds'] * 1e6:9.1f} µs{share}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    machine = {**read_environment().to_json(), "onnxruntime": onnxruntime.__version__}
    kernels = measure_kernels(5 * options.rounds)
    rows = [row for threads in options.threads for row in measure(threads, options.rounds)]
    if options.output:
        result = {"benchmark": "binary_conv", "machine": machine, "convolutions": rows, "kernels": kernels}
        write_json(options.output, result)


if __name__ == "__main__":
    main()
