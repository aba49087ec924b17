"""What every engine has to provide, and the checks that all of them share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import numpy as np

from runtime.bundle import Bundle
from runtime.engine_file import EngineBuild
from runtime.errors import DataError, EngineError, UsageError
from runtime.runners.choice import DEFAULT, EngineChoice

EngineCall = Callable[[], Sequence[np.ndarray]]


class Runner(ABC):
    """One model of a bundle, loaded into an engine; a context manager that closes it.

    An engine implements four hooks: `_prepare_load`, `_check_loaded`, `_engine_call`, `_unload`. The first
    two set `version` and `providers` (what the engine really runs on), and `nodes`, how many operations run on each
    of them, where the engine says so. `load_ms` is the time of the function that `_prepare_load` returns: reading
    and checking the file is not the engine's. `engine_build` says what building took, of an engine that is built here.
    """

    engine: str
    engine_build: EngineBuild | None = None

    def __init__(self, bundle: Bundle, format: str, *, threads: int = 1, choice: EngineChoice = DEFAULT) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}, expected at least 1")
        self.bundle = bundle
        self.format = format
        self.file = bundle.format(format)
        self.path = bundle.file_of(format)
        self.threads = threads
        self.choice = choice
        self.version = ""
        self.providers: tuple[str, ...] = ()
        self.nodes: Mapping[str, int] = {}
        self.notes: tuple[str, ...] = ()  # why it is no faster format; what does not run where it was asked to
        self.load_ms = 0.0
        self._closed = False
        load = self._prepare_load()
        start = time.perf_counter_ns()
        load()
        self.load_ms = (time.perf_counter_ns() - start) / 1e6
        self._check_loaded()

    @abstractmethod
    def _prepare_load(self) -> Callable[[], None]:
        """Import the engine, read and check the file; return the function that only loads the model.

        Raises MissingExtraError, BundleError.
        """

    @abstractmethod
    def _check_loaded(self) -> None:
        """Raise unless what was loaded is what the manifest says (BundleError) and runs where it should."""

    @abstractmethod
    def _engine_call(self, batch: np.ndarray) -> EngineCall:
        """Return a function that only runs `batch`; it gives arrays in the manifest's order of outputs."""

    @abstractmethod
    def _unload(self) -> None:
        """Give the engine's memory back."""

    def prepare(self, batch: np.ndarray) -> EngineCall:
        """Check `batch` (N, *shape) once and return its engine call: what a benchmark repeats and times.

        The function raises whatever the engine raises; `infer` turns that into an EngineError.
        """
        if self._closed:
            raise EngineError(f"{self.path}: the runner is closed")
        self._check_input(batch)
        return self._engine_call(np.ascontiguousarray(batch))

    def takes_batch(self, size: int) -> bool:
        """Return whether the engine runs `size` rows at once; most run any number."""
        return self.bundle.fixed_batch in (None, size)

    def rows_at_once(self, most: int) -> int:
        """Return how many rows, up to `most`, it runs at once; of a fixed batch, that."""
        return self.bundle.fixed_batch or next((size for size in range(most, 0, -1) if self.takes_batch(size)), most)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the class logits (N, C). Raises DataError for a batch that does not fit, EngineError."""
        return self.infer_outputs(batch)[self.bundle.outputs[0].name]

    def infer_outputs(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output of the manifest by name, each (N, *shape)."""
        call = self.prepare(batch)
        try:
            arrays = call()
        except Exception as error:
            raise self._failed(error) from error
        outputs = {}
        for spec, array in zip(self.bundle.outputs, arrays, strict=True):
            expected = (len(batch), *spec.shape)
            if array.shape != expected or array.dtype != np.dtype(spec.dtype):
                raise EngineError(
                    f"{self.path}: output {spec.name!r} came as {array.dtype} {list(array.shape)}, "
                    f"expected {spec.dtype} {list(expected)}"
                )
            outputs[spec.name] = array
        return outputs

    def close(self) -> None:
        """Unload the model; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._unload()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failed(self, error: Exception) -> EngineError:
        return EngineError(f"{self.path}: {self.engine} {self.version} failed: {one_line(error)}")

    def _check_input(self, batch: np.ndarray) -> None:
        spec = self.bundle.input
        expected = f"{spec.dtype} {spec.in_words()}"
        if not isinstance(batch, np.ndarray):
            raise DataError(f"input {spec.name!r} is a {type(batch).__name__}, expected a numpy array {expected}")
        fits = batch.dtype == np.dtype(spec.dtype) and batch.ndim >= 1 and spec.takes(batch.shape[1:])
        if not fits or len(batch) == 0:
            layout = f" ({spec.layout})" if spec.layout else ""
            raise DataError(
                f"input {spec.name!r} came as {batch.dtype} {list(batch.shape)}, expected {expected}{layout}, N >= 1"
            )
        fixed = self.bundle.fixed_batch
        if fixed not in (None, len(batch)):
            raise DataError(
                f"{self.path}: {len(batch)} rows at once, and the model takes exactly {fixed}",
                remedy=f"Run it with --batch {fixed}, or export it with a free first axis.",
            )


def one_line(error: BaseException) -> str:
    """Return the first line of an engine's message that says anything."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
