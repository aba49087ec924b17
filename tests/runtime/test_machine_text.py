from runtime.machine_text import machine_facts

GPU = {
    "name": "Some GPU",
    "uuid": "GPU-a",
    "driver": "570.1",
    "sm_clock_mhz": 1980,
    "most_sm_clock_mhz": 2100,
    "temperature_celsius": 41,
    "power_watts": 70.25,
    "power_limit_watts": 700.0,
    "mig_mode": True,
    "clock_reasons": ("software power cap", "sync boost"),
}
LOAD = {
    "before": {"load_average": [0.31, 1, 1], "frequencies_mhz": [600.0, 1200.0], "temperature_celsius": 41.0},
    "after": {"load_average": [1.02, 1, 1], "frequencies_mhz": [2400.0], "temperature_celsius": 67.5},
}


def facts(load=None, engine=None, **document):
    return machine_facts(
        {
            "environment": {"machine": "aarch64"},
            "load": load or {"before": {}, "after": {}},
            "engine": engine or {},
            **document,
        }
    )


def test_a_machine_that_says_nothing():
    assert facts() == {"machine": "aarch64"}


def test_the_state_before_and_after():
    assert facts(load=LOAD)["before, after"] == "load 0.31 then 1.02, 1200 then 2400 MHz, 41.0 then 67.5 degrees"
    assert "before, after" not in facts(load={"before": LOAD["before"], "after": {}})


def test_the_gpus_that_the_engine_runs_on():
    board = {"before": {}, "after": {"gpus": [GPU, {"uuid": "GPU-b", "sm_clock_mhz": 300}]}}
    first = (
        "Some GPU (driver 570.1), 1980 of 2100 MHz, 41 degrees, 70.25 of 700 W, divided (MIG), "
        "clocks by software power cap and sync boost"
    )
    assert facts(board=board, engine={"gpus": ["GPU-a"]})["gpu"] == first
    both = facts(board=board, engine={"gpus": ["GPU-b", "GPU-a"]})["gpu"]
    assert both == f"{first}; GPU (driver unknown), 300 MHz"
    assert "gpu" not in facts(board=board)  # on the CPU


def test_what_tegrastats_says():
    seen = {
        "ram_used_mb": 1803,
        "ram_mb": 7486,
        "emc_percent": 5,
        "emc_mhz": 665,
        "gpu_percent": 12,
        "gpu_mhz": [305, 306],
        "temperatures_celsius": {"tj": 48.0, "gpu": 47.562},
        "rails_mw": {"VDD_IN": 4093.0},
    }
    found = facts(board={"before": {}, "after": {"tegrastats": seen}})
    assert found["tegrastats"] == (
        "gpu 12 % at 306 MHz, memory bus 5 % at 665 MHz, memory 1,803 of 7,486 MB, tj 48, gpu 47.562 degrees"
    )
    assert found["power, after"] == "VDD_IN 4,093 mW"
    both = facts(board={"before": {}, "after": {"tegrastats": seen, "rails_mw": {"VDD_IN (hwmon3)": 4100.0}}})
    assert both["power, after"] == "VDD_IN (hwmon3) 4,100 mW"
    assert facts(board={"before": {}, "after": {"tegrastats": {"gpu_mhz": [314]}}})["tegrastats"] == "gpu 314 MHz"


def test_power_and_energy_by_the_names_of_rails_and_counters():
    found = facts(
        board={"before": {}, "after": {"rails_mw": {"VDD_IN (hwmon3)": 3600.4}, "power_mode": "15W"}},
        energy=[{"counter": "RAPL package-0", "joules": 7.0, "calls": 2000, "mj_per_call": 3.5}],
    )
    assert (found["power mode"], found["power, after"]) == ("15W", "VDD_IN (hwmon3) 3,600 mW")
    assert found["energy"] == "3.5 mJ a call by RAPL package-0, with all else that ran"
