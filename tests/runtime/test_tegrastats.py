import os
import time
from pathlib import Path

import pytest

from runtime.board import read_board
from runtime.tegrastats import parsed, read_tegrastats

# Lines that users have shown of their boards, newest release last.
TX1 = (
    "RAM 1179/3983MB (lfb 120x4MB) IRAM 0/252kB(lfb 252kB) CPU [1%@102,4%@102,0%@102,0%@102] EMC_FREQ 7%@408 "
    "GR3D_FREQ 0%@76 APE 25 AO@42.5C CPU@37.5C GPU@39C PLL@37C Tdiode@42.75C PMIC@100C Tboard@42C thermal@38.5C "
    "VDD_IN 2532/2698 VDD_CPU 76/178 VDD_GPU 19/19"
)
NANO = (  # without root: no frequencies of memory and GPU
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C POM_5V_IN 900/943 POM_5V_GPU 0/0 "
    "POM_5V_CPU 123/123"
)
TX2_NX = (
    "RAM 1690/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [11%@2035,off,off,5%@2035,96%@2035,4%@2035] "
    "EMC_FREQ 0% GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C"
)
AGX_XAVIER = (
    "RAM 2336/15827MB (lfb 2948x4MB) CPU [2%@1190,1%@1190,0%@1190,0%@1190,off,off,off,off] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@25.5C GPU@26C Tboard@27C Tdiode@28.75C AUX@25C CPU@27C thermal@25.75C PMIC@100C GPU 465/465 CPU 310/310 "
    "SOC 1242/1242 CV 0/0 VDDRQ 0/0 SYS5V 1776/1776"
)
XAVIER_NX = (
    "RAM 4412/7772MB (lfb 237x4MB) SWAP 139/3886MB (cached 2MB) CPU [9%@1190,6%@1190,6%@1190,5%@1190,4%@1190,8%@1267] "
    "EMC_FREQ 10%@1600 GR3D_FREQ 62%@306 APE 150 MTS fg 0% bg 0% AO@41.5C GPU@43C PMIC@100C AUX@41.5C CPU@43.5C "
    "thermal@42.55C VDD_IN 4067/4067 VDD_CPU_GPU_CV 738/738 VDD_SOC 1353/1353"
)
AGX_ORIN_5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C "
    "SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C SOC1@40.468C CV2@-256C "
    "VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
AGX_ORIN_6 = (
    "RAM 29114/30697MB (lfb 3x4MB)    SWAP 4915/15348MB (cached 1MB) CPU [3%@729,100%@2201] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 0%@[305,305] NVENC      off  NVDEC    off NVJPG off NVENC 79%@166 VIC        off   PVA0_FREQ off  "
    "APE    174        cpu@53.062C soc2@48.25C gpu@47.812C tj@53.062C   VDD_GPU_SOC 3205mW/3205mW "
    "VDD_CPU_CV 4405mW/4405mW VIN_SYS_5V0 4767mW/4767mW"
)
ORIN_NANO_6 = (
    "09-04-2026 19:40:47 RAM 1803/7486MB (lfb 8x4MB) CPU [64%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 5%@665 "
    "GR3D_FREQ 12%@[306] NVDEC0 off OFA off APE 200 cpu@47.562C/48C soc2@46.75C/46.906C gpu@48C/48.125C "
    "tj@48C/48.125C VDD_IN 4093mW/4463mW/4832mW VDD_CPU_GPU_CV 802mW/1019mW/1236mW VDD_SOC 1243mW/1340mW/1437mW"
)
THOR_7 = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,8%@972] EMC_FREQ 0%@2750 "
    "GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 cpu@37.343C tj@38.875C "
    "soc012@37.468C gpu@38.875C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW "
    "VIN 19780mW/19780mW"
)


def expected(ram, cores, emc, gpu, degrees, now, average=None, swap=None):
    """Write out the mapping: memory (used, all), cores (percent, MHz), emc and gpu (percent, MHz) as far as said."""
    values = {
        "ram_used_mb": ram[0],
        "ram_mb": ram[1],
        "swap_used_mb": swap and swap[0],
        "swap_mb": swap and swap[1],
        "cpu_percent": tuple(each and each[0] for each in cores),
        "cpu_mhz": tuple(each and each[1] for each in cores),
        "emc_percent": emc[0],
        "emc_mhz": emc[1],
        "gpu_percent": gpu[0],
        "gpu_mhz": gpu[1],
        "temperatures_celsius": degrees,
        "rails_mw": now,
        "rails_average_mw": now if average is None else average,
    }
    return {name: value for name, value in values.items() if value not in (None, {}, ())}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            TX1,
            expected(
                (1179, 3983),
                [(1, 102), (4, 102), (0, 102), (0, 102)],
                (7, 408),
                (0, (76,)),
                {
                    "AO": 42.5,
                    "CPU": 37.5,
                    "GPU": 39,
                    "PLL": 37,
                    "Tdiode": 42.75,
                    "PMIC": 100,
                    "Tboard": 42,
                    "thermal": 38.5,
                },
                {"VDD_IN": 2532, "VDD_CPU": 76, "VDD_GPU": 19},
                {"VDD_IN": 2698, "VDD_CPU": 178, "VDD_GPU": 19},
            ),
        ),
        (
            NANO,
            expected(
                (613, 3964),
                [(2, 102), (1, 102), (0, 102), (0, 102)],
                (0, None),
                (0, ()),
                {"PLL": 39, "CPU": 40.5, "PMIC": 100, "GPU": 41, "AO": 46, "thermal": 41},
                {"POM_5V_IN": 900, "POM_5V_GPU": 0, "POM_5V_CPU": 123},
                {"POM_5V_IN": 943, "POM_5V_GPU": 0, "POM_5V_CPU": 123},
                swap=(0, 1982),
            ),
        ),
        (
            TX2_NX,
            expected(
                (1690, 3825),
                [(11, 2035), None, None, (5, 2035), (96, 2035), (4, 2035)],
                (0, None),
                (0, ()),
                {"PLL": 50.5, "MCPU": 50.5, "PMIC": 50, "GPU": 50, "BCPU": 50.5, "thermal": 50.3},
                {},
                swap=(0, 1913),
            ),
        ),
        (
            AGX_XAVIER,
            expected(
                (2336, 15827),
                [(2, 1190), (1, 1190), (0, 1190), (0, 1190), None, None, None, None],
                (0, None),
                (0, ()),
                {
                    "AO": 25.5,
                    "GPU": 26,
                    "Tboard": 27,
                    "Tdiode": 28.75,
                    "AUX": 25,
                    "CPU": 27,
                    "thermal": 25.75,
                    "PMIC": 100,
                },
                {"GPU": 465, "CPU": 310, "SOC": 1242, "CV": 0, "VDDRQ": 0, "SYS5V": 1776},
            ),
        ),
        (
            XAVIER_NX,
            expected(
                (4412, 7772),
                [(9, 1190), (6, 1190), (6, 1190), (5, 1190), (4, 1190), (8, 1267)],
                (10, 1600),
                (62, (306,)),
                {"AO": 41.5, "GPU": 43, "PMIC": 100, "AUX": 41.5, "CPU": 43.5, "thermal": 42.55},
                {"VDD_IN": 4067, "VDD_CPU_GPU_CV": 738, "VDD_SOC": 1353},
                swap=(139, 3886),
            ),
        ),
        (
            AGX_ORIN_5,
            expected(
                (1282, 62795),
                [(0, 729), (0, 729), None, None],
                (0, 2133),
                (0, (0,)),
                {
                    "CPU": 42.593,
                    "Tboard": 32,
                    "SOC2": 39.343,
                    "Tdiode": 33.25,
                    "SOC0": 39.375,
                    "tj": 42.593,
                    "SOC1": 40.468,
                },
                {"VDD_GPU_SOC": 2399, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4032, "VDDQ_VDD2_1V8AO": 301},
                swap=(0, 31398),
            ),
        ),
        (
            AGX_ORIN_6,
            expected(
                (29114, 30697),
                [(3, 729), (100, 2201)],
                (1, 2133),
                (0, (305, 305)),
                {"cpu": 53.062, "soc2": 48.25, "gpu": 47.812, "tj": 53.062},
                {"VDD_GPU_SOC": 3205, "VDD_CPU_CV": 4405, "VIN_SYS_5V0": 4767},
                swap=(4915, 15348),
            ),
        ),
        (
            ORIN_NANO_6,
            expected(
                (1803, 7486),
                [(64, 729), *[(0, 729)] * 5],
                (5, 665),
                (12, (306,)),
                {"cpu": 47.562, "soc2": 46.75, "gpu": 48, "tj": 48},
                {"VDD_IN": 4093, "VDD_CPU_GPU_CV": 802, "VDD_SOC": 1243},
                {"VDD_IN": 4463, "VDD_CPU_GPU_CV": 1019, "VDD_SOC": 1340},
            ),
        ),
        (
            THOR_7,
            expected(
                (105265, 125772),
                [(0, 972), (8, 972)],
                (0, 2750),
                (None, (314, 314, 314)),
                {"cpu": 37.343, "tj": 38.875, "soc012": 37.468, "gpu": 38.875},
                {"VDD_GPU": 1962, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780},
            ),
        ),
        # One clock for all cores, and a rail without its average: older and newer ones again.
        (
            "RAM 900/3956MB CPU [5%,off,0%]@1326 EMC 7%@408 GR3D 3%@76 VDD_GPU_SOC 1234mW",
            expected(
                (900, 3956), [(5, 1326), None, (0, 1326)], (7, 408), (3, (76,)), {}, {"VDD_GPU_SOC": 1234}, average={}
            ),
        ),
    ],
    ids=[
        "tx1",
        "nano",
        "tx2 nx",
        "agx xavier",
        "xavier nx",
        "agx orin, 5",
        "agx orin, 6",
        "orin nano, 6",
        "thor, 7",
        "bare",
    ],
)
def test_lines_of_real_boards(line, values):
    assert parsed(line) == values


@pytest.mark.parametrize(
    "line", ["", "tegrastats: cannot open /sys/kernel/debug: try sudo", "usage: tegrastats [--interval MS]"]
)
def test_what_is_no_line_of_it_has_no_values(line):
    assert parsed(line) == {}


def lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
def running(command, tmp_path):
    """Return a function that puts a tegrastats on PATH, which runs `body`, and one that gives the processes it left."""

    def put(body):
        path = tmp_path / "bin/tegrastats"
        noted = f'PATH=/usr/bin:/bin\necho $$ >> {tmp_path}/pids\necho "$*" > {tmp_path}/asked'
        path.write_text(f"#!/bin/sh\n{noted}\n{body}\n")
        path.chmod(0o755)

    def left():
        """Those of the noted processes that live; who started the one that is dead may have to collect it yet."""
        pids = (tmp_path / "pids").read_text().split()
        until = time.monotonic() + 5
        while (alive := [each for each in pids if lives(each)]) and time.monotonic() < until:
            time.sleep(0.01)
        return alive

    return put, left


def test_one_line_is_taken_and_the_command_ended(running, tmp_path):
    put, left = running
    put(f"while :; do echo '{XAVIER_NX}'; sleep 0.05; done & echo $! >> {tmp_path}/pids; wait")
    assert read_tegrastats() == parsed(XAVIER_NX)
    assert (tmp_path / "asked").read_text() == "--interval 200\n"
    assert left() == []
    assert read_board(tmp_path).tegrastats == parsed(XAVIER_NX)


def test_a_warning_before_the_line_is_passed_over(running):
    put, left = running
    put(f"echo 'WARNING: not root'; printf '%s' '{NANO[:100]}'; sleep 0.1; echo '{NANO[100:]}'; exec sleep 60")
    assert read_tegrastats() == parsed(NANO)
    assert left() == []


@pytest.mark.parametrize(
    "body",
    ["sleep 60 & echo $! >> {pids}; wait", "trap '' TERM; exec sleep 60", "yes no", "echo 'RAM 1/2MB'  >&2", "exit 1"],
    ids=["silent", "deaf", "chatter", "errors only", "fails"],
)
def test_one_that_says_nothing_of_use_is_ended_in_time(running, tmp_path, monkeypatch, body):
    monkeypatch.setattr("runtime.tegrastats._LIMIT_S", 0.3)
    put, left = running
    put(body.replace("{pids}", f"{tmp_path}/pids"))
    begin = time.monotonic()
    assert read_tegrastats() is None
    assert time.monotonic() - begin < 10  # and not the 60 seconds of the stand-ins
    assert left() == []


def test_without_it_nothing_is_started(command):
    assert read_tegrastats() is None
    assert not os.path.exists(os.path.join(os.environ["PATH"], "tegrastats"))
