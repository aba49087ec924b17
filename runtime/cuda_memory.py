"""Memory of the GPU, a stream and CUDA graphs, through cuda-python or torch, whichever is there.

TensorRT takes addresses and a stream, and brings neither. cuda-python comes first: torch brings threads of its own.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.errors import EngineError, MissingExtraError


class CudaMemory(ABC):
    """Buffers of the current device, and a stream on which copies and the engine run one after the other.

    The default stream is not used: TensorRT synchronises more on it. stream: its handle. name: who provides it all.
    """

    name: str
    stream: int

    @abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Return the address of a new buffer; it lives until `close`."""

    @abstractmethod
    def upload(self, address: int, array: np.ndarray) -> None:
        """Begin to copy a contiguous array to the buffer at `address`."""

    @abstractmethod
    def download(self, array: np.ndarray, address: int) -> None:
        """Begin to copy from the buffer at `address` to a contiguous array."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything that was begun is done."""

    @abstractmethod
    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that launches what `work` puts on the stream, as one CUDA graph."""

    @abstractmethod
    def close(self) -> None:
        """Free every buffer."""


class CudaPython(CudaMemory):
    """Through the CUDA runtime as cuda-python binds it: each function returns its status first."""

    name = "cuda-python"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._buffers: list[int] = []
        self._graphs: list[Any] = []
        self._stream = self._checked(runtime.cudaStreamCreate())
        self.stream = int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        address = int(self._checked(self._runtime.cudaMalloc(size_bytes)))
        self._buffers.append(address)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def download(self, array: np.ndarray, address: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def synchronize(self) -> None:
        self._checked(self._runtime.cudaStreamSynchronize(self._stream))

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(self._runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        finally:
            graph = self._checked(self._runtime.cudaStreamEndCapture(self._stream))
        launched = self._checked(self._runtime.cudaGraphInstantiate(graph, 0))
        self._graphs.append(launched)
        return lambda: self._checked(self._runtime.cudaGraphLaunch(launched, self._stream))

    def close(self) -> None:
        for graph in self._graphs:
            self._runtime.cudaGraphExecDestroy(graph)
        for address in self._buffers:
            self._runtime.cudaFree(address)
        self._runtime.cudaStreamDestroy(self._stream)
        self._graphs, self._buffers = [], []

    def _checked(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise EngineError(f"CUDA: {getattr(status, 'name', status)}")
        return values[0] if values else None


class Torch(CudaMemory):
    """Through torch's tensors and streams."""

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._stream = torch.cuda.Stream()
        self.stream = self._stream.cuda_stream
        self._buffers: dict[int, Any] = {}

    def allocate(self, size_bytes: int) -> int:
        buffer = self._torch.empty(size_bytes, dtype=self._torch.uint8, device="cuda")
        address = int(buffer.data_ptr())
        self._buffers[address] = buffer
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        with self._torch.cuda.stream(self._stream):
            self._buffers[address][: array.nbytes].copy_(self._bytes(array), non_blocking=True)

    def download(self, array: np.ndarray, address: int) -> None:
        with self._torch.cuda.stream(self._stream):
            self._bytes(array).copy_(self._buffers[address][: array.nbytes], non_blocking=True)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream):
            work()

        def replay() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def close(self) -> None:
        self._buffers.clear()

    def _bytes(self, array: np.ndarray) -> Any:
        """Return the array's own memory as a tensor of bytes."""
        return self._torch.from_numpy(array.reshape(-1).view(np.uint8))


def cuda_memory() -> CudaMemory:
    """Return the first that is usable here. Raises MissingExtraError where neither is."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # its new place and its old one
        with contextlib.suppress(ImportError):
            return CudaPython(importlib.import_module(name))
    with contextlib.suppress(ImportError):
        torch = importlib.import_module("torch")
        if torch.cuda.is_available():
            return Torch(torch)
    raise MissingExtraError(
        "TensorRT needs GPU memory, and neither cuda-python nor a torch with CUDA is installed",
        remedy="pip install cuda-python",
    )
