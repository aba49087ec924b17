"""Classifies images with a bundle's packed model, with onnxruntime and numpy alone.

    python classify.py OPERATORS BUNDLE IMAGE...

OPERATORS is libedgefold_ops.so; IMAGE a binary PGM or PPM file of 8 bits, of the model's own size.
"""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def read_image(path: Path) -> np.ndarray:
    """Return uint8 [1, H, W, C]."""
    data = path.read_bytes()
    header = re.match(rb"P([56])\s+(?:#.*\s+)*(\d+)\s+(?:#.*\s+)*(\d+)\s+(?:#.*\s+)*255\s", data)
    if header is None:
        sys.exit(f"error: {path}: not a binary PGM or PPM file of 8 bits")
    channels = 1 if header[1] == b"5" else 3
    width, height = int(header[2]), int(header[3])
    pixels = np.frombuffer(data, np.uint8, height * width * channels, header.end())
    return pixels.reshape(1, height, width, channels)


def main(operators: str, bundle: Path, images: list[Path]) -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(operators)
    session = onnxruntime.InferenceSession(
        str(bundle / "model.packed.onnx"), options, providers=["CPUExecutionProvider"]
    )
    labels = (bundle / "labels.txt").read_text().splitlines()
    for path in images:
        logits = session.run(None, {session.get_inputs()[0].name: read_image(path)})[0][0]
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = int(probabilities.argmax())
        print(f"{labels[best]}\t{probabilities[best]:.6g}\t{path}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: classify.py OPERATORS BUNDLE IMAGE...")
    main(sys.argv[1], Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
