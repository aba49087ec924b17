import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.device import peak_resident_bytes, read_environment, read_load, usable_cores
from tests.support.fake_root import write


@pytest.fixture
def all_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)


def test_nothing_readable_is_nothing_recorded(tmp_path):
    environment, load = read_environment(tmp_path).to_json(), read_load(tmp_path).to_json()
    assert {"python", "logical_cores"} <= set(environment)
    assert not {"governors", "memory_bytes", "cpu_limit", "container", "max_frequency_mhz"} & set(environment)
    assert set(load) <= {"load_average"}


def test_garbage_is_absent_and_never_an_error(tmp_path):
    files = [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/self/cgroup",
        "sys/fs/cgroup/cpu.max",
        "sys/fs/cgroup/cpu.stat",
    ]
    write(tmp_path, dict.fromkeys(files, "\0garbage: :\n::"))
    write(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "fast"})
    assert "cpu_limit" not in read_environment(tmp_path).to_json()
    assert "frequencies_mhz" not in read_load(tmp_path).to_json()


def test_this_machine_gives_plain_json():
    json.dumps([read_environment().to_json(), read_load().to_json()], allow_nan=False)


def test_a_laptop(tmp_path, all_cores):
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n",
            "proc/meminfo": "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}/cpu1/cpufreq/scaling_governor": "performance\n",
            f"{cpu}/cpu2/cpufreq/scaling_governor": "schedutil\n",  # not one of ours
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "3400000\n",
            f"{cpu}/cpu1/cpufreq/cpuinfo_max_freq": "4000000\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "4\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "67500\n",
        },
    )
    environment, load = read_environment(tmp_path), read_load(tmp_path)
    assert environment.cpu_model == "Some CPU @ 2.0GHz"
    assert environment.governors == ("performance", "powersave")
    assert environment.max_frequency_mhz == 4000.0
    assert (environment.memory_bytes, load.memory_available_bytes) == (16_384_000, 8_192_000)
    assert load.frequencies_mhz == (1200.0, 3400.0)
    assert load.temperature_celsius == 67.5
    assert load.thermal_throttle_events == 7
    assert environment.affinity == (0, 1)


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        ("flags : fpu vme sse4_2 avx2 avx512_vnni avx_vnni amx_int8 fma f16c sme smep rdtscp\n", 7),
        ("Features : fp asimd evtstrm aes crc32 asimddp asimdhp i8mm bf16 sve2 sve\n\nHardware : X\n", 7),
        ("Features : half thumb fastmult vfp edsp neon vfpv3\n", 1),
    ],
)
def test_features_that_engines_choose_by(tmp_path, cpuinfo, features):
    write(tmp_path, {"proc/cpuinfo": f"processor : 0\n{cpuinfo}\nprocessor : 1\n{cpuinfo}"})
    found = read_environment(tmp_path).cpu_features
    assert len(found) == features
    assert found == tuple(sorted(found))
    assert not {"fpu", "rdtscp", "sme", "smep", "fp", "aes", "crc32", "vfpv3", "half"} & set(found)
    assert set(found) <= set(cpuinfo.split())


@pytest.mark.parametrize(
    ("devices", "state"),
    [
        ({}, None),
        ({"Fan": 3, "intel_powerclamp": -1}, None),
        ({"Processor": 0, "Fan": 3}, 0),
        ({"thermal-cpufreq-0": 0, "thermal-cpufreq-1": 4, "thermal-devfreq-0": 7}, 4),
        ({"cpufreq-cpu0": 2, "cpufreq-cpu4": 1}, 2),
    ],
)
def test_a_kernel_that_cools_the_processor(tmp_path, devices, state):
    for i, (kind, value) in enumerate(devices.items()):
        folder = f"sys/class/thermal/cooling_device{i}"
        write(tmp_path, {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{value}\n"})
    assert read_load(tmp_path).cpu_cooling_state == state


def test_a_container_of_cgroup_version_2(tmp_path, all_cores):
    group = "sys/fs/cgroup/pod/box"
    write(
        tmp_path,
        {
            ".dockerenv": "",
            "proc/self/cgroup": "0::/pod/box\n",
            f"{group}/cpu.max": "max 100000\n",
            f"{group}/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 2\nthrottled_usec 300\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",  # the limit may be a parent's
            "sys/fs/cgroup/pod/cpu.stat": "nr_throttled 1\nthrottled_usec 50\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\n",
        },
    )
    environment, load = read_environment(tmp_path), read_load(tmp_path)
    assert environment.container == "docker"
    assert environment.cpu_limit == 1.5
    assert usable_cores(environment) == min(1.5, os.cpu_count())
    assert (load.cgroup_throttled_periods, load.cgroup_throttled_us) == (3, 350)


def test_a_container_of_cgroup_version_1(tmp_path):
    write(
        tmp_path,
        {
            "proc/1/cgroup": "4:cpu:/kubepods/burstable/x\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.stat": "nr_periods 1\nnr_throttled 4\nthrottled_time 7000000\n",
        },
    )
    environment, load = read_environment(tmp_path), read_load(tmp_path)
    assert (environment.container, environment.cpu_limit) == ("kubepods", 0.5)
    assert (load.cgroup_throttled_periods, load.cgroup_throttled_us) == (4, 7000)


def test_a_group_of_cgroup_version_1_outside_of_containers(tmp_path):
    group = "sys/fs/cgroup/cpu/user.slice/job"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/elsewhere\n4:cpu,cpuacct:/user.slice/job\n1:name=systemd:/x\n0::/y\n",
            f"{group}/cpu.cfs_quota_us": "150000\n",
            f"{group}/cpu.cfs_period_us": "100000\n",
            f"{group}/cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3000000\n",
            "sys/fs/cgroup/cpu/user.slice/cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 1000000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    load = read_load(tmp_path)
    assert read_environment(tmp_path).cpu_limit == 1.5
    assert (load.cgroup_throttled_periods, load.cgroup_throttled_us) == (3, 4000)


def test_no_quota_is_no_limit(tmp_path):
    write(
        tmp_path,
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
    )
    assert read_environment(tmp_path).cpu_limit is None


def test_a_board(tmp_path):
    write(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/cpuinfo": "processor : 0\nCPU part : 0xd08\n\nHardware : BCM2835\n",
        },
    )
    environment = read_environment(tmp_path)
    assert environment.device_model == "Raspberry Pi 4 Model B Rev 1.4"
    assert environment.cpu_model == "BCM2835"


def test_the_version_is_that_of_the_package():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]
    assert read_environment().packages["edgefold"] == version


def test_peak_memory_is_this_programs_and_not_what_its_parent_had():
    ballast = np.ones(60_000_000)  # 480 MB, which a child's ru_maxrss would show
    code = "from runtime.device import peak_resident_bytes; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = peak_resident_bytes()
    assert own is not None
    assert own > ballast.nbytes > 8 * int(done.stdout) > 0
