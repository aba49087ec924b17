from runtime.energy import Counter, energy_between, read_counters
from tests.support.fake_root import write


def test_counters_have_the_names_of_the_machine(tmp_path, no_nvml):
    zone = "sys/class/powercap/intel-rapl:0"
    write(
        tmp_path,
        {
            f"{zone}/name": "package-0\n",
            f"{zone}/energy_uj": "123\n",
            f"{zone}/max_energy_range_uj": "999\n",
            "sys/class/powercap/intel-rapl:1/name": "dram\n",  # whose reading only root may see
            "sys/class/hwmon/hwmon2/name": "ina228\n",
            "sys/class/hwmon/hwmon2/energy1_input": "77\n",
        },
    )
    assert read_counters(tmp_path) == {
        "RAPL package-0 (intel-rapl:0)": Counter(123, 999),
        "ina228 energy1 (hwmon2)": Counter(77),
    }


def test_energy_is_the_difference_of_two_readings():
    before = {"a": Counter(1_000_000, 4_999_999), "b": Counter(4_500_000, 4_999_999), "c": Counter(9), "d": Counter(0)}
    after = {"a": Counter(3_000_000, 4_999_999), "b": Counter(500_000, 4_999_999), "c": Counter(8)}
    first, wrapped = energy_between(before, after, 500)  # c ran backwards and d was lost
    assert first.to_json() == {"counter": "a", "joules": 2.0, "calls": 500, "mj_per_call": 4.0}
    assert (wrapped.counter, wrapped.joules) == ("b", 1.0)
