"""TensorRT on an ONNX format: its engine is built on this machine when it is first wanted, and kept."""

from __future__ import annotations

from runtime.bundle import Bundle
from runtime.engine_cache import Say, engine_here
from runtime.engine_file import EngineFile
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.runners.tensorrt import TensorRTRunner


class BuiltHereRunner(TensorRTRunner):
    """batch, say: as in `open_runner`. Building is no part of `load_ms`; `engine_build` says what it took."""

    def __init__(
        self,
        bundle: Bundle,
        format: str,
        *,
        threads: int = 1,
        choice: EngineChoice = DEFAULT,
        copies: bool = True,
        cuda_graph: bool = False,
        batch: int | None = None,
        say: Say = lambda line: None,
    ) -> None:
        self._batch = batch
        self._say = say
        super().__init__(bundle, format, threads=threads, choice=choice, copies=copies, cuda_graph=cuda_graph)

    def _read_engine(self) -> tuple[bytes, EngineFile]:
        kept = engine_here(self.bundle, self.format, self.choice.tensorrt_module, self._batch, self._say)
        self.engine_build, self._folder = kept.build, kept.folder
        return kept.plan, kept.description

    def _remedy(self, batch: int | None = None) -> str:
        if batch:
            return f"Run it with --batch {batch}, and an engine for it is built."
        return f"Remove {self._folder} and run it again: the engine is then built anew." if self._folder else ""
