"""NVML and CUDA's driver are real libraries here, compiled from `tests/support`: their ABI is what can go wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tests.support
from runtime import nvml
from runtime.nvml import held_back, read_energy, read_gpus

COMPILER = shutil.which("cc") or shutil.which("gcc")
SOURCES = Path(tests.support.__path__[0])
UUID = "GPU-00112233-4455-6677-8899-aabbccddeeff"
SECOND = {
    "name": "NVIDIA Stand-in 10",
    "uuid": "GPU-ffffffff-4455-6677-8899-aabbccddeeff",
    "driver": "570.86.15",
    "cuda": "12.8",
}

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler, which makes the stand-in libraries"),
    pytest.mark.skipif(sys.platform != "linux", reason="the libraries' names are Linux's"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Return a function that compiles the stand-ins, with these macros defined, and returns their folder."""

    def made(*macros):
        folder = tmp_path_factory.mktemp("libraries")
        for source, library in (("stand_in_nvml.c", "libnvidia-ml.so.1"), ("stand_in_cuda.c", "libcuda.so.1")):
            options = ["-shared", "-fPIC", "-Wall", "-Werror", *(f"-D{each}" for each in macros)]
            subprocess.run([COMPILER, *options, SOURCES / source, "-o", folder / library], check=True)
        return folder

    return made


@pytest.fixture
def use(libraries, no_nvml, monkeypatch):
    """Return a function that has `runtime.nvml` load the stand-in by its path."""

    def load(*macros):
        monkeypatch.setattr(nvml, "_LIBRARIES", ("libthereisnone.so.1", str(libraries(*macros) / "libnvidia-ml.so.1")))

    return load


def test_a_gpu_with_everything_and_one_that_supports_little(use):
    use()
    first, second = read_gpus()
    assert first == {
        "name": "NVIDIA Stand-in 100",
        "uuid": UUID,
        "driver": "570.86.15",
        "cuda": "12.8",
        "sm_clock_mhz": 1980,
        "most_sm_clock_mhz": 2100,
        "memory_clock_mhz": 2619,
        "temperature_celsius": 41,
        "power_watts": 70.25,
        "power_limit_watts": 700.0,
        "memory_used_bytes": 6 * 2**30,
        "memory_bytes": 80 * 2**30,
        "utilization_percent": 97,
        "persistence_mode": True,
        "compute_mode": "exclusive process",
        "mig_mode": False,
        "clock_reasons": ("idle", "software power cap", "bits 0x100000000"),
        "held_back_ns": {"power limit": 5_000_000, "heat": 7 << 32},
    }
    assert second == {**SECOND, "sm_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_celsius": 41}


def test_energy_is_what_the_counter_says_in_microjoules(use):
    use()
    name = f"NVML NVIDIA Stand-in 100 ({UUID})"
    assert read_energy() == {name: 5_000_000_001_500_000}  # the second GPU has no counter
    assert read_energy([UUID]) == {name: 5_000_000_003_000_000}
    assert read_energy([]) == read_energy([SECOND["uuid"]]) == {}


def test_an_old_driver_lacks_what_it_does_not_have(use):
    use("OLD")
    first = read_gpus()[0]
    assert "mig_mode" not in first
    assert first["clock_reasons"][:2] == ("idle", "software power cap")  # by the function's old name
    assert read_energy() == {}


def test_a_driver_that_does_not_start_is_no_gpu(use):
    use("NO_DRIVER")
    assert (read_gpus(), read_energy()) == (None, {})


def test_no_library_is_no_gpu(no_nvml):
    assert (read_gpus(), read_energy()) == (None, {})


def test_settings_and_idleness_hold_nothing_back():
    settings = ("idle", "application clocks", "sync boost", "display clocks", "bits 0x200")
    slowdowns = ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "power brake")
    assert held_back({}, {"clock_reasons": settings}) == ()
    assert held_back({}, {"clock_reasons": (*settings, "software power cap")}) == ("software power cap",)
    assert held_back({}, {"clock_reasons": slowdowns}) == slowdowns
    assert held_back({"clock_reasons": slowdowns}, {}) == ()  # before it had work


def test_time_held_back_counts_where_it_grew():
    before = {"held_back_ns": {"power limit": 5_000_000, "heat": 7, "board limit": 3}}
    after = {"held_back_ns": {"power limit": 17_400_000, "heat": 7}}
    assert held_back(before, after) == ("power limit for 12.4 ms",)
    assert held_back({}, after) == ()  # since when is not known


MEASURED = """
import ctypes, json, sys
from pathlib import Path
from runtime.bench import benchmark
from runtime.bundle import open_bundle
from runtime.cuda import uuids_in_use
from runtime.display import bench_text
from runtime.measure import BenchPlan

plan = BenchPlan(quick=True, seconds=0.01, calls=100, warm_up_seconds=0.01, warm_up_most_seconds=0.05)
bundle = open_bundle(Path(sys.argv[1]))
on_cpu = benchmark(bundle, plan=plan).to_json()
loaded = "libcuda" in Path("/proc/self/maps").read_text()
driver = ctypes.CDLL("libcuda.so.1")
steps = [uuids_in_use()]
driver.cuInit(0)
steps.append(uuids_in_use())
driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)  # as an engine on the GPU does
steps.append(uuids_in_use())
on_gpu = benchmark(bundle, plan=plan).to_json()
print(json.dumps([loaded, steps, on_cpu, on_gpu, bench_text(on_gpu)]))
"""


def test_a_measurement_on_the_gpu_has_its_energy_and_one_on_the_cpu_has_not(libraries, bundle_folder):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries())}
    command = [sys.executable, "-c", MEASURED, str(bundle_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded, steps, on_cpu, on_gpu, text = json.loads(done.stdout)
    assert not loaded  # CUDA's driver is not started for a measurement on the CPU
    assert steps == [[], [], [UUID]]
    assert not [each for each in on_cpu.get("energy", ()) if "NVML" in each["counter"]]
    assert not [note for note in on_cpu["notes"] if "NVML" in note]
    assert [each["uuid"] for each in on_cpu["board"]["after"]["gpus"]] == [UUID, SECOND["uuid"]]
    assert "gpus" not in on_cpu["engine"]

    assert on_gpu["engine"]["gpus"] == [UUID]
    (energy,) = (each for each in on_gpu["energy"] if "NVML" in each["counter"])
    calls = on_gpu["latency"]["calls"]
    assert energy == {
        "counter": f"NVML NVIDIA Stand-in 100 ({UUID})",
        "joules": 1.5,  # between one question and the next
        "calls": calls,
        "mj_per_call": 1500 / calls,
    }
    (note,) = (note for note in on_gpu["notes"] if "NVML" in note)
    assert note == (
        "UNSTABLE: the board was held back: software power cap (NVML, NVIDIA Stand-in 100), "
        "power limit for 5 ms (NVML, NVIDIA Stand-in 100)"
    )
    assert f"{1500 / calls:.4g} mJ a call by NVML NVIDIA Stand-in 100 ({UUID})" in text
