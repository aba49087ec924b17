from compress.choice import Candidate
from compress.terminal.devices import print_candidates, print_target_benches

RESULT = {
    "engine": {"name": "tensorrt", "version": "10.3", "threads": 1, "gpus": ["GPU-a"]},
    "latency": {"percentiles": {"p50": {"measured_ms": 0.5}, "p90": {"measured_ms": 0.6}}},
    "batch": 1,
    "size_bytes": 1000,
    "notes": ["UNSTABLE: the board was held back: power brake (NVML, Some GPU)"],
    "board": {"before": {}, "after": {"gpus": [{"uuid": "GPU-a", "name": "Some GPU", "driver": "570.1"}]}},
    "energy": [{"counter": "NVML Some GPU (GPU-a)", "joules": 7.0, "calls": 2000, "mj_per_call": 3.5}],
}


def test_results_of_targets_with_gpus_and_energy(capsys):
    quiet = {**RESULT, "notes": [], "board": {"before": {}, "after": {}}, "energy": []}
    results = {"orin": {"tensorrt": RESULT}, "pi": {"onnx": quiet}}
    print_target_benches(results, dict.fromkeys([("orin", "tensorrt"), ("pi", "onnx")], ()), False)
    shown = capsys.readouterr().out
    assert shown.count("UNSTABLE") == 2  # in the table, and why below it
    assert "orin, tensorrt: gpu: Some GPU (driver 570.1)\n" in shown
    assert "orin, tensorrt: energy: 3.5 mJ a call by NVML Some GPU (GPU-a), with all else that ran\n" in shown
    assert "pi, onnx:" not in shown


def test_an_unstable_candidate_is_marked(capsys):
    figures = {
        "accuracy": 0.9,
        "low": 0.8,
        "high": 0.95,
        "p50_ms": 0.5,
        "p90_ms": 0.6,
        "size_bytes": 1000,
        "parity": True,
    }
    names = {"recipe": "r", "stage": "student", "variant": ""}
    print_candidates(
        [
            Candidate(**names, **figures, format="onnx", target="pi", latency_note="UNSTABLE"),
            Candidate(**names, **figures, format="int8", target="pi"),
        ]
    )
    heads, onnx, int8, sentence = capsys.readouterr().out.splitlines()
    assert "UNSTABLE" in onnx
    assert "onnx" in onnx
    assert "UNSTABLE" not in heads + int8
    assert sentence.startswith("On pi: ship student · onnx, ")
    assert sentence.endswith(" Its latency is UNSTABLE: measure again.")
