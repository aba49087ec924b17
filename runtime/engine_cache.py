"""TensorRT engines that were built on this machine of a bundle's ONNX files, kept in the user's cache.

An engine is as good as the machine that built it: its key is of the ONNX file, of TensorRT's module and version, of the
GPU and its driver, and of how it was built. What is read is compared with its description and its checksum before it is
loaded; what does not fit is built again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.bundle import Bundle
from runtime.bundle_engine import engine_of
from runtime.cuda import CudaDevice, cuda_devices, driver_version
from runtime.engine_build import BATCH_SIZES, Engine, profile_sizes
from runtime.engine_file import EngineBuild, EngineFile, engine_file_from_json
from runtime.errors import BundleError, DeviceError, EngineError, ExportError
from runtime.files import folder_atomically, json_text, sha256_of_bytes
from runtime.remote_end import RefusedError, cache_folder, forget_old
from runtime.tensorrt_library import RTX, tensorrt_module

BUILD_VERSION = 1  # raised where the same request is built in another way
PLAN, DESCRIPTION, RECORD = "model.engine", "model.engine.json", "built.json"

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class KeptEngine:
    """An engine that fits this machine, its description, where it came from, and the folder that keeps it, if any."""

    plan: bytes
    description: EngineFile
    build: EngineBuild
    folder: Path | None


@dataclass(frozen=True, eq=False)
class WantedEngine:
    """An engine of a bundle's format for this machine. profiles: batch sizes, each list a profile of its own."""

    bundle: Bundle
    format: str
    trt: ModuleType
    device: CudaDevice
    driver: str | None
    profiles: tuple[tuple[int, ...], ...]

    @property
    def facts(self) -> dict[str, Any]:
        """Return all that the engine depends on, as JSON gives it back."""
        return {
            "build_version": BUILD_VERSION,
            "onnx_sha256": self.bundle.checksums[self.bundle.format(self.format).file],
            "module": self.trt.__name__,
            "version": self.trt.__version__,
            "gpu": self.device.name,
            "compute_capability": self.device.capability,
            "driver": self.driver,
            "profiles": [list(each) for each in self.profiles],
            "length": self.bundle.input.shape[0] if any(self.bundle.input.free) else None,
        }

    @functools.cached_property
    def key(self) -> str:
        return sha256_of_bytes(json.dumps(self.facts, sort_keys=True).encode())

    @property
    def folder(self) -> Path:
        """Return where it is kept. Raises OSError where nothing can be."""
        try:
            return cache_folder("engines")[0] / self.key
        except RefusedError as error:
            raise OSError(error.message) from None

    @property
    def announcement(self) -> str:
        """Say that it is built, which can take minutes on a small device."""
        file = self.bundle.file_of(self.format).name
        return f"building a {self.trt.__name__} {self.trt.__version__} engine of {file} for {self.device.name}, once"

    def kept(self) -> KeptEngine | None:
        """Return the engine if it was built before and is as it was."""
        facts = self.facts
        try:
            folder = self.folder
            record = json.loads((folder / RECORD).read_bytes())
            description = engine_file_from_json((folder / DESCRIPTION).read_bytes(), str(folder))
            plan = (folder / PLAN).read_bytes()
            fits = record["facts"] == facts and all(
                getattr(description, name) == facts[name] for name in ("onnx_sha256", "module", "version")
            )
            seconds = float(record["seconds"])
        except (OSError, ValueError, TypeError, KeyError, BundleError):
            return None
        if not fits or sha256_of_bytes(plan) != description.plan_sha256:
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return KeptEngine(plan, description, EngineBuild(True, seconds, self.key), folder)

    def built(self, say: Say) -> KeptEngine:
        """Build the engine and keep it. Raises EngineError with what TensorRT reported, UsageError, BundleError."""
        say(self.announcement)
        start = time.perf_counter()
        try:
            engine = engine_of(
                self.bundle,
                self.format,
                self.profiles,
                # RTX builds for any GPU, so it is told which; it says so where it does not serve this one.
                compute_capability=self.device.capability if self.trt.__name__ == RTX else None,
                module=self.trt.__name__,
            )
        except ExportError as error:
            raise EngineError(error.message, error.remedy) from error
        seconds = time.perf_counter() - start
        description = engine.describe(self.bundle.format(self.format).file)
        folder = None
        try:
            folder = self._keep(engine, description, seconds)
        except OSError as error:
            say(f"note: the engine is not kept for the next time: {error.strerror or error}")
        return KeptEngine(engine.plan, description, EngineBuild(False, seconds, self.key), folder)

    def _keep(self, engine: Engine, description: EngineFile, seconds: float) -> Path:
        folder = self.folder
        forget_old(*folder.parent.iterdir())
        with folder_atomically(folder) as beside:
            (beside / PLAN).write_bytes(engine.plan)
            (beside / DESCRIPTION).write_text(json_text(description.to_json()))
            (beside / RECORD).write_text(json_text({"facts": self.facts, "seconds": seconds}))
        return folder


def wanted_engine(bundle: Bundle, format: str, module: str | None, batch: int | None) -> WantedEngine:
    """Return what an engine of a format has to be here.

    module: one of `tensorrt_library.MODULES`, None for the first that can build. batch: the rows of a call that it is
    tuned for, 1 if left out; it takes all batches that the bundle was verified at as well.
    Raises DeviceError without a GPU, MissingExtraError without a TensorRT, EngineError for one that cannot be used.
    """
    device = next(iter(cuda_devices()), None)
    if device is None:  # said before TensorRT is looked for: without a GPU it would be of no use
        raise DeviceError(
            f"{bundle.file_of(format)}: TensorRT needs an NVIDIA GPU, and this machine has no CUDA device"
        )
    try:
        trt = tensorrt_module(module)
    except ExportError as error:
        raise EngineError(error.message, error.remedy) from error
    return WantedEngine(bundle, format, trt, device, driver_version(), _profiles(bundle, batch or 1))


def engine_here(bundle: Bundle, format: str, module: str | None, batch: int | None, say: Say) -> KeptEngine:
    """Return the engine of a format for this machine: the one that was built before, else a new one."""
    wanted = wanted_engine(bundle, format, module, batch)
    return wanted.kept() or wanted.built(say)


def _profiles(bundle: Bundle, batch: int) -> tuple[tuple[int, ...], ...]:
    """Return a profile of all batches, and one for `batch` alone where the first is tuned for another."""
    every = tuple(sorted({*(bundle.batch_sizes or BATCH_SIZES), batch}))
    return (every,) if profile_sizes(every)[1] == batch else (every, (batch,))
