import pytest

from runtime.board import (
    BoardState,
    power_mode,
    read_board,
    read_rails,
    require_power_mode,
    throttling,
)
from runtime.energy import read_counters
from runtime.errors import UsageError
from tests.support.fake_root import write


def test_without_commands_and_sensors_nothing_is_said(tmp_path, command):
    assert read_board(tmp_path).to_json() == {}
    assert read_counters(tmp_path) == {}


def test_bits_of_a_raspberry_pi_in_words(tmp_path, command):
    asked = command("vcgencmd", "throttled=0x50005")
    state = read_board(tmp_path)
    assert asked.read_text().splitlines() == ["get_throttled", "pmic_read_adc"]
    assert state.throttled == ("under-voltage", "throttled")
    assert state.throttled_since_start == ("under-voltage", "throttled")
    command("vcgencmd", "throttled=0xa0002")
    assert read_board(tmp_path).throttled == ("ARM frequency capped",)
    assert read_board(tmp_path).throttled_since_start == ("ARM frequency capped", "soft temperature limit active")


def test_a_command_that_fails_or_says_something_else_leaves_its_values_absent(tmp_path, command):
    command("vcgencmd", "throttled=0x0", status=1)
    command("nvpmodel", "NVPM ERROR: no such thing")
    assert read_board(tmp_path).to_json() == {}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (((), ()), ((), ()), ()),
        (((), ("throttled",)), ((), ("throttled",)), ()),  # long ago
        (((), ()), ((), ("throttled",)), ("throttled (vcgencmd)",)),  # came and went meanwhile
        ((("under-voltage",), ()), ((), ()), ("under-voltage (vcgencmd)",)),
        (((), ()), (("throttled",), ("throttled",)), ("throttled (vcgencmd)",)),
        ((None, None), (None, None), ()),
    ],
)
def test_throttling_is_what_was_set_meanwhile(before, after, expected):
    assert throttling(BoardState(*before), BoardState(*after)) == expected


def test_only_the_gpus_of_the_engine_can_hold_it_back():
    before = BoardState(gpus=({"uuid": "GPU-b", "clock_reasons": ("hardware slowdown",)},))
    after = BoardState(
        gpus=(
            {"uuid": "GPU-a", "name": "A", "clock_reasons": ("software power cap",)},
            {"uuid": "GPU-b", "name": "B", "clock_reasons": ("idle", "power brake")},
        )
    )
    assert throttling(before, after) == ()
    assert throttling(before, after, ["GPU-b"]) == ("power brake (NVML, B)",)
    assert throttling(BoardState(), after, ["GPU-a", "GPU-c"]) == ("software power cap (NVML, A)",)


def test_a_jetson(tmp_path, command):
    command("nvpmodel", "NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2")
    asked = command("jetson_clocks", "Online CPUs: 0-5\nGPU MinFreq=114750000 CurrentFreq=114750000")
    rails = "sys/class/hwmon/hwmon3"
    write(
        tmp_path,
        {
            f"{rails}/name": "ina3221\n",
            f"{rails}/in1_label": "VDD_IN\n",
            f"{rails}/in1_input": "5000\n",
            f"{rails}/curr1_input": "720\n",
            f"{rails}/in4_input": "7\n",  # the shunt's, which has no current of its own
            "sys/class/hwmon/hwmon1/name": "ina226\n",
            "sys/class/hwmon/hwmon1/power1_input": "1250000\n",
            "sys/class/hwmon/hwmon0/name": "thermal\n",
            "sys/class/hwmon/hwmon0/power1_input": "9\n",
        },
    )
    state = read_board(tmp_path)
    assert (state.power_mode, power_mode()) == ("MODE_15W_6CORE", "MODE_15W_6CORE")
    assert asked.read_text().strip() == "--show"
    assert state.clocks == ("Online CPUs: 0-5", "GPU MinFreq=114750000 CurrentFreq=114750000")
    assert state.rails_mw == {"VDD_IN (hwmon3)": 3600.0, "power1 (hwmon1)": 1250.0}
    assert read_counters(tmp_path) == {}  # power is no energy


def test_power_of_a_raspberry_pi_5_by_rail(tmp_path, command):
    lines = (
        " 3V7_WL_SW_A current(0)=0.00000000A",
        "  VDD_CORE_A current(7)=0.75000000A",
        "   ORPHAN_A current(9)=1.00000000A",
        " 3V7_WL_SW_V volt(8)=3.79999600V",
        "  VDD_CORE_V volt(15)=0.90000000V",
        "     EXT5V_V volt(24)=5.06788000V",
    )
    asked = command("vcgencmd", "\n".join(lines))
    assert read_rails(tmp_path) == {"3V7_WL_SW (PMIC)": 0.0, "VDD_CORE (PMIC)": pytest.approx(675.0)}
    assert asked.read_text().strip() == "pmic_read_adc"
    assert read_board(tmp_path).rails_mw == read_rails(tmp_path)
    assert read_counters(tmp_path) == {}  # nor is that energy
    command("vcgencmd", 'error=1 error_msg="Command not registered"')  # of an older board
    assert read_rails(tmp_path) == {}


def test_another_power_mode_is_refused_with_the_command_that_sets_it(tmp_path, command):
    command("nvpmodel", "NV Power Mode: MAXN\n0")
    require_power_mode("MAXN", tmp_path)
    write(
        tmp_path, {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE 1\n< POWER_MODEL ID=3 NAME=15W >\n"}
    )
    with pytest.raises(UsageError, match=r"is in power mode 'MAXN', expected '15W'\n.*sudo nvpmodel -m 3$"):
        require_power_mode("15W", tmp_path)
    with pytest.raises(UsageError, match=r"expected '25W'\n.*Those of this device: MAXN, 15W\."):
        require_power_mode("25W", tmp_path)


def test_a_device_without_power_modes_is_in_none(tmp_path, command):
    with pytest.raises(UsageError, match=r"says none .*\nLeave the power mode out"):
        require_power_mode("15W", tmp_path)
