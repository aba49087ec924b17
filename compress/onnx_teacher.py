"""An ONNX file as a teacher: what it takes and gives, read by ONNX Runtime, which also runs it, on the CPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compress.models import Classifier, Output, image_shape
from compress.recipe_report import did_you_mean
from export.graph import InputSignature, Preprocess
from runtime.errors import RecipeError
from runtime.files import sha256_of_bytes
from runtime.onnx_file import onnx_header_from_bytes, refuse_external_data
from runtime.runners.base import one_line

_ERRORS_ONLY = 3
_IMAGE_TYPES = ("tensor(float)",)
_ID_TYPES = ("tensor(int32)", "tensor(int64)")
_NUMPY = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A loaded model. Widths are those of its outputs; embedding and classifier are None where it gives none.

    classifier: weight (C*S, D) and bias (C*S,), where the logits are a Gemm of the embedding.
    """

    path: Path
    sha256: str
    session: Any
    logits: str
    logits_width: int
    embedding: str | None
    embedding_width: int | None
    classifier: tuple[Tensor, Tensor] | None

    @property
    def input_type(self) -> str:
        return self.session.get_inputs()[0].type

    @property
    def input_shape(self) -> tuple[Any, ...]:
        """The input's sizes without the batch; what is not a number is free."""
        return tuple(self.session.get_inputs()[0].shape[1:])

    def problem(self, signature: InputSignature, raw: bool) -> str | None:
        """Say why it cannot be given the inputs of `signature`, raw or preprocessed, or None."""
        types: tuple[str, ...]
        if raw and signature.ids is None:
            types, shape, what = ("tensor(uint8)",), signature.shape, f"raw {signature.layout}"
        elif signature.ids is None:
            types, shape, what = _IMAGE_TYPES, image_shape(signature), "preprocessed NCHW"
        else:
            types, shape, what = _ID_TYPES, signature.shape, "ids"
        came = self.input_shape
        fits = len(came) == len(shape) and all(
            not isinstance(size, int) or size == wanted for size, wanted in zip(came, shape, strict=True)
        )
        if fits and self.input_type in types:
            return None
        sizes = ", ".join(map(str, came))
        wanted = f"{' or '.join(types)} [N, {', '.join(map(str, shape))}]"
        return f"{self.path} takes {self.input_type} [N, {sizes}], and the data is {wanted} ({what})"


def read_onnx(path: Path, *, logits: str, embedding: str | None) -> OnnxFile:
    """Load the model at `path`. `logits` and `embedding` name tensors of it: outputs, or what is computed on the way.

    Raises RecipeError for a file or names that cannot be used, BundleError where it is no whole ONNX model or keeps
    weights elsewhere, which its checksum would not cover.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read: {error.strerror}", "Name a file, from the working folder."
        ) from None
    return _read(path, state.st_mtime_ns, state.st_size, logits, embedding)


# A recipe's stages, variants and checks ask again and again.
@functools.lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int, size: int, logits: str, embedding: str | None) -> OnnxFile:
    data = path.read_bytes()
    refuse_external_data(onnx_header_from_bytes(data, str(path)), path)
    model = onnx.load_model_from_string(data)
    computed = [*dict.fromkeys([each.name for each in model.graph.output] + _computed(model))]
    names = [logits, *([embedding] if embedding else [])]
    for name in names:
        if name not in computed:
            outputs = [each.name for each in model.graph.output]
            raise RecipeError(f"{path} has no tensor '{name}'", did_you_mean(name, outputs))
        if name not in {each.name for each in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = _session(path, model.SerializeToString())
    if len(session.get_inputs()) != 1:
        inputs = ", ".join(each.name for each in session.get_inputs())
        raise RecipeError(f"{path} has inputs {inputs}; expected one")
    batch = (session.get_inputs()[0].shape or [1])[0]
    if isinstance(batch, int):
        raise RecipeError(f"{path} takes batches of {batch} alone", "Export it with a dynamic batch axis.")
    widths = [_width(path, session, name) for name in names]
    return OnnxFile(
        path=path,
        sha256=sha256_of_bytes(data),
        session=session,
        logits=logits,
        logits_width=widths[0],
        embedding=embedding,
        embedding_width=widths[1] if embedding else None,
        classifier=_classifier(model, logits, embedding),
    )


def _computed(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in node.output if name]


def _session(path: Path, data: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(data, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types are private and differ between versions
        raise RecipeError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {one_line(error)}") from error


def _width(path: Path, session: Any, name: str) -> int:
    """Return the width of an output (N, width) of floats. Raises RecipeError where it is something else."""
    output = next(each for each in session.get_outputs() if each.name == name)
    shape = list(output.shape or [])
    if output.type != "tensor(float)" or len(shape) != 2 or not isinstance(shape[1], int):
        raise RecipeError(f"{path}: '{name}' is {output.type} {shape}; expected tensor(float) [N, a fixed width]")
    return shape[1]


def _classifier(model: onnx.ModelProto, logits: str, embedding: str | None) -> tuple[Tensor, Tensor] | None:
    """Return weight (K, D) and bias (K,) of the Gemm that makes `logits` of `embedding`, None where there is none."""
    constants = {each.name: each for each in model.graph.initializer}
    node = next((each for each in model.graph.node if logits in each.output), None)
    if node is None or node.op_type != "Gemm" or node.input[0] != embedding:
        return None
    options = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    scaled = options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0 or options.get("transA", 0)
    if scaled or any(name and name not in constants for name in node.input[1:]):
        return None
    weight = torch.from_numpy(numpy_helper.to_array(constants[node.input[1]]).astype(np.float32))
    weight = weight if options.get("transB", 0) else weight.T
    given = len(node.input) > 2 and node.input[2]
    bias = torch.zeros(len(weight))
    if given:
        bias = bias + torch.from_numpy(numpy_helper.to_array(constants[node.input[2]]).astype(np.float32))
    return weight.contiguous(), bias


class OnnxTeacher(Classifier):
    """Takes preprocessed inputs, as every model does, and gives logits, and an embedding where the file has one.

    raw: the file does its own preprocessing, so `preprocess` is undone, exactly, before it is asked. Gradients do not
    pass through, and there are no feature maps.
    """

    def __init__(self, file: OnnxFile, preprocess: Preprocess, *, raw: bool) -> None:
        super().__init__()
        self.file = file
        self.undone = preprocess if raw else None
        if file.classifier is not None:
            weight, bias = file.classifier
            self.classifier = nn.Linear(weight.shape[1], weight.shape[0])
            self.classifier.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor) -> Output:
        inputs = x if self.undone is None else raw_inputs(x, self.undone)
        array = np.ascontiguousarray(inputs.detach().cpu().numpy(), dtype=_NUMPY[self.file.input_type])
        names = [self.file.logits, *([self.file.embedding] if self.file.embedding else [])]
        outputs = self.file.session.run(names, {self.file.session.get_inputs()[0].name: array})
        logits, *embedding = (torch.from_numpy(each).to(x.device) for each in outputs)
        return Output(logits, embedding[0] if embedding else logits[:, :0], ())


def raw_inputs(x: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the uint8 images (N, *shape) that `preprocess` made x (N, channels, H, W) of; ids as they are."""
    if preprocess.signature.ids is not None:
        return x
    pixels = ((x - preprocess.shift) / preprocess.scale).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1) if preprocess.signature.layout == "NHWC" else pixels
