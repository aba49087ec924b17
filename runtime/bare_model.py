"""An ONNX classifier that lies in no bundle, described like one, so that everything that runs bundles runs it.

What a bundle's manifest says is read from the graph; what the graph leaves open must be given. Nothing here proves that
the file is the model that somebody trained: results of such a file say that it is no bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.bundle import Bundle
from runtime.errors import BundleError, UsageError
from runtime.files import sha256_of_bytes
from runtime.manifest import DTYPES, FormatFile, TensorSpec
from runtime.onnx_file import OnnxHeader, Operators, onnx_header_from_bytes, operators_from_bytes, refuse_external_data
from runtime.onnx_signature import Axis, Value, signature_from_bytes

if TYPE_CHECKING:
    from runtime.rows import Rows

Shapes = Mapping[str, tuple[int | None, ...]]

MOST_BYTES = 1 << 31  # protobuf's own limit of a message
_ROWS, _FEWEST_ROWS, _ROW_BYTES = 64, 4, 1 << 26  # made-up inputs, and what they may take together
# By the type of the weights, the narrowest first: constants of preprocessing and scores stay wide.
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_PROBABILITIES = ("Softmax", "Sigmoid")
PACKED_DOMAIN = "edgefold"
_FORMATS = ("packed", "bf16")  # precisions that have a runner of their own
# Domains of operators that ONNX Runtime has itself.
_KNOWN_DOMAINS = ("", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", PACKED_DOMAIN)
# Whose operators the others are, and what runs them.
_OWNERS = {
    "ai.onnx.contrib": "they are onnxruntime-extensions'",
    "org.openvinotoolkit": "they are OpenVINO's own",
    "qonnx.custom_op.general": "QONNX is for FPGA tools (FINN, hls4ml); export Q/DQ for an engine",
    "onnx.brevitas": "they are Brevitas' own; export Q/DQ (QCDQ) in the place of them",
    "mmdeploy": "they are mmdeploy's",
    "trt.plugins": "they are a TensorRT plugin's",
}
# What files that are taken for ONNX begin with.
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS: the file itself was not fetched (git lfs pull)"),
    (b"PK\x03\x04", "a zip archive: PyTorch weights, an .npz or a packed folder"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"<", "a page or an XML file, such as OpenVINO's IR"),
    (b"\x80", "a pickle"),
)


@dataclass(frozen=True)
class BareModel(Bundle):
    """`path` is the file itself. gives: "logits" or "probabilities". unsigned: how many quantisers are uint8."""

    gives: str = "logits"
    unsigned: int = 0

    @property
    def checksum(self) -> str:
        """sha256 of the file."""
        (digest,) = self.checksums.values()
        return digest

    @property
    def identity(self) -> dict[str, Any]:
        return {"bundle": None, "model": {"file": self.name, "sha256": self.checksum, "gives": self.gives}}

    @property
    def described_in(self) -> str:
        return "the graph says with --shape"

    def file_of(self, format: str) -> Path:
        self.format(format)
        return self.path

    def read_bytes(self, file: str) -> bytes:
        """Return the file's content; BundleError if it is another than when it was opened."""
        data = _read(self.path, MOST_BYTES)
        if sha256_of_bytes(data) != self.checksums[file]:
            raise BundleError(f"{self.path} was changed while it was read", remedy="Run the command again.")
        return data

    def samples(self) -> Rows:
        """Return made-up inputs, the same ones each time: noise of the input's type, no labels that mean anything."""
        import numpy as np

        from runtime.rows import Rows

        shape, dtype = self.input.shape, np.dtype(self.input.dtype)
        row_bytes = int(np.prod(shape)) * max(dtype.itemsize, 4)
        count = min(_ROWS, max(_FEWEST_ROWS, _ROW_BYTES // row_bytes))
        generator = np.random.default_rng(0)
        if dtype.kind == "f":
            inputs = generator.standard_normal((count, *shape), dtype=np.float32).astype(dtype)
        else:
            low, high = _made_up_range(self.input.dtype)
            inputs = generator.integers(low, high, (count, *shape), dtype=dtype, endpoint=True)
        return Rows(inputs, np.zeros(count, np.int64), np.arange(count, dtype=np.int64))

    def notes(self, *, made_up: bool) -> tuple[str, ...]:
        notes = []
        if self.unsigned:
            notes.append(f"{self.unsigned} quantisers are uint8, which TensorRT would take for int8 and clip")
        if made_up:
            low, high = _made_up_range(self.input.dtype)
            noise = "normal noise" if self.input.dtype.startswith("float") else f"whole numbers from {low} to {high}"
            notes.append(f"inputs are made up: {noise}; give real ones with --data")
        return tuple(notes)


def _made_up_range(dtype: str) -> tuple[int, int]:
    # Wider integers are mostly indices into a table of unknown length.
    return {"uint8": (0, 255), "int8": (-128, 127)}.get(dtype, (0, 1))


def is_bare_model(path: Path) -> bool:
    """Return whether `path` is meant as a file and not as a bundle's folder."""
    return path.is_file() or (path.suffix == ".onnx" and not path.is_dir())


def open_model(path: str | Path, shapes: Shapes | None = None, *, most_bytes: int = MOST_BYTES) -> BareModel:
    """Read the ONNX classifier at `path`: one input, and class scores (N, C) as its first output of that form.

    shapes: sizes of axes that the file leaves open, by the name of the input or output, batch included.
    Raises BundleError for a file that is no whole ONNX model or not safe to load, UsageError for one that is no
    classifier or leaves sizes open.
    """
    path, shapes = Path(path), shapes or {}
    data = _read(path, most_bytes)
    header = _header(data, path)
    refuse_external_data(header, path)
    operators = operators_from_bytes(data, str(path))
    signature = signature_from_bytes(data, str(path))
    _check_domains(operators, signature.own_domains, path)
    known = {each.name for each in (*signature.inputs, *signature.outputs)}
    for name in shapes:
        if name not in known:
            raise UsageError(f"{path}: --shape names {name!r}; the model has {', '.join(sorted(known))}")
    taken = _with_shape(_only_input(signature.inputs, path), shapes, path)
    given = _scores(signature.outputs, shapes, path)
    batch, *shape = _sizes(taken, path)
    _, classes = _sizes(given, path)
    maker = next((node.kind for node in operators.nodes if given.name in node.outputs), "")
    precision = _precision(operators, tuple(signature.weights))
    form = FormatFile(
        file=path.name,
        size_bytes=len(data),
        precision=precision,
        opset=header.opset,
        ir_version=header.ir_version,
    )
    assert classes is not None  # `_sizes` leaves only the batch open
    return BareModel(
        name=path.name,
        stage="",
        recipe_key="",
        classes=classes,
        subclasses=1,
        class_names=tuple(map(str, range(classes))),
        input=TensorSpec(taken.name, taken.dtype, tuple(size for size in shape if size is not None)),
        outputs=(TensorSpec(given.name, given.dtype, (classes,)),),
        batch_sizes=(),
        formats={precision if precision in _FORMATS else "onnx": form},
        engines=(),
        samples_file="",
        labels_file="",
        metrics={},
        text=None,
        table=None,
        path=path,
        checksums={path.name: sha256_of_bytes(data)},
        unsigned=len(operators.unsigned_quantizers),
        gives="probabilities" if maker in _PROBABILITIES else "logits",
        fixed_batch=batch,
    )


def shape_from_text(text: str) -> tuple[str, tuple[int | None, ...]]:
    """Parse `input=1x3x224x224`, or `input=Nx3x224x224`. Raises UsageError."""
    name, equals, sizes = text.rpartition("=")
    axes = sizes.lower().split("x")
    plain = all(axis.isascii() and (axis == "n" or (axis.isdigit() and int(axis) > 0)) for axis in axes)
    if not (name and equals and plain and "n" not in axes[1:]):
        raise UsageError(f"--shape is {text!r}, expected NAME=SIZExSIZE..., as in input=1x3x224x224")
    return name, tuple(None if axis == "n" else int(axis) for axis in axes)


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise BundleError(
                f"{path}: {size:,} bytes, allowed {most_bytes:,}",
                remedy="An ONNX file cannot hold more than 2 GiB; weights beside it are not read."
                if most_bytes == MOST_BYTES
                else "Allow more with --max-size.",
            )
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def _header(data: bytes, path: Path) -> OnnxHeader:
    try:
        return onnx_header_from_bytes(data, str(path))
    except BundleError as error:
        found = next((what for beginning, what in _BEGINNINGS if data.startswith(beginning)), "")
        found = "an empty file" if not data else "a TensorFlow Lite model" if data[4:8] == b"TFL3" else found
        if not found:
            raise
        raise BundleError(f"{path}: not an ONNX model but {found}", remedy="Give an .onnx file.") from error


def _check_domains(operators: Operators, own: Sequence[str], path: Path) -> None:
    for domain in operators.domains:
        if domain in _KNOWN_DOMAINS or domain in own:
            continue
        names = dict.fromkeys(node.kind for node in operators.nodes if node.domain == domain)
        owner = _OWNERS.get(domain, "no engine here has operators of that domain")
        raise UsageError(
            f"{path}: it needs {', '.join(names)} of domain {domain!r}: {owner}",
            remedy="Export it again with standard operators.",
        )


def _only_input(inputs: tuple[Value, ...], path: Path) -> Value:
    if len(inputs) != 1:
        came = "; ".join(each.in_words() for each in inputs) or "none"
        raise UsageError(f"{path}: {len(inputs)} inputs ({came}), expected one that holds a batch of rows")
    (value,) = inputs
    if value.kind != "tensor" or value.dtype not in DTYPES:
        remedy = "Export the model from behind its text processing: with ids as input." * (value.dtype == "string")
        raise UsageError(
            f"{path}: its input is {value.in_words()}; expected a tensor of {', '.join(DTYPES)}", remedy=remedy
        )
    return value


def _scores(outputs: tuple[Value, ...], shapes: Shapes, path: Path) -> Value:
    """Return the first output that can be class scores."""
    for output in outputs:
        value = _with_shape(output, shapes, path)
        if value.kind == "tensor" and value.dtype.startswith("float") and value.axes is not None:
            if len(value.axes) == 2:
                return value
        elif value.kind == "tensor" and value.dtype.startswith("float"):
            raise UsageError(
                f"{path}: the file does not say of what shape its output {value.name!r} is",
                remedy=f"Give it: --shape {value.name}=1x10 for ten classes.",
            )
    came = "; ".join(each.in_words() for each in outputs) or "none"
    zipped = any(each.kind in ("sequence", "map") for each in outputs)
    raise UsageError(
        f"{path}: no output is class scores, float [N, C]; it has {came}",
        remedy="Of scikit-learn: convert it with zipmap=False, so that the probabilities are a tensor."
        if zipped
        else "Only classifiers with one label a row are run here.",
    )


def _with_shape(value: Value, shapes: Shapes, path: Path) -> Value:
    """Return `value` with the sizes that were given for it. Raises UsageError where the file says others."""
    if value.name not in shapes:
        return value
    given, axes = shapes[value.name], value.axes
    fits = axes is None or (
        len(axes) == len(given)
        and all(not isinstance(came, int) or size in (None, came) for came, size in zip(axes, given, strict=True))
    )
    if not fits:
        wanted = "x".join("N" if size is None else str(size) for size in given)
        raise UsageError(f"{path}: --shape {value.name}={wanted}, and the model has {value.in_words()}")
    batch: Axis = axes[0] if axes else None  # a free batch stays free: how many rows a call has is --batch
    return Value(value.name, value.kind, value.dtype, (batch, *given[1:]))


def _sizes(value: Value, path: Path) -> tuple[int | None, ...]:
    """Return the axes of an input or output, of which only the batch may be open. Raises UsageError."""
    axes = value.axes
    if not axes or len(axes) < 2 or any(not isinstance(axis, int) for axis in axes[1:]):
        known = "x".join(str(axis) if isinstance(axis, int) else "?" for axis in (axes or ())[1:])
        example = f"--shape {value.name}=1x{known}, with numbers for each ?" if known else f"--shape {value.name}=1x..."
        raise UsageError(
            f"{path}: {value.in_words()} leaves sizes open besides the batch",
            remedy=f"Give those that the model is for: {example}.",
        )
    return tuple(axis if isinstance(axis, int) else None for axis in axes)


def _precision(operators: Operators, weights: tuple[str, ...]) -> str:
    if PACKED_DOMAIN in operators.domains:
        return "packed"
    if any(node.kind in _QUANTIZERS for node in operators.nodes):
        return "quantised"
    return next((name for dtype, name in _PRECISIONS.items() if dtype in weights), "fp32")
