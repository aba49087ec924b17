"""Results as short text for a terminal: plain ASCII around the user's own names, as on a device's console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.machine_text import machine_facts

if TYPE_CHECKING:
    from runtime.accuracy import AccuracyResult
    from runtime.bundle import Bundle
    from runtime.classify import Classified
    from runtime.manifest import TensorSpec

_WORST_CLASSES = 10
_CONFUSIONS = 5


def bench_text(result: Mapping[str, Any]) -> str:
    """Show a document of `bench`."""
    latency, engine = result["latency"], result["engine"]
    percentiles = latency["percentiles"]
    unit, scale = _unit(next(iter(percentiles.values()))["measured_ms"] if percentiles else latency["min_ms"])

    def time(ms: float) -> str:
        return f"{ms * scale:.2f} {unit}"

    def milliseconds(ms: float) -> str:
        return f"{ms:.2f} ms"

    title = (
        f"{_model_name(result)}: {result['format']} ({result['precision']}, {result['size_bytes']:,} bytes) on "
        f"{_engine(engine['name'], engine['version'], engine['chosen'])}, {_count(engine['threads'], 'thread')}, "
        f"batch {result['batch']}{', server' if 'server' in result else ''}"
        f"{' (QUICK measurement)' if result['quick'] else ''}"
    )
    rows = [("latency", "measured", "at most, 99 % sure")]
    rows += [(name, time(each["measured_ms"]), time(each["early_stopping_ms"])) for name, each in percentiles.items()]
    rows += [(name, time(latency[f"{name}_ms"]), "") for name in ("min", "mean", "max")]
    facts = {}
    if "median_interval_95_ms" in latency:
        low, high = latency["median_interval_95_ms"]
        facts["median"] = f"{time(low)} to {time(high)} (95 % interval)"
    processes = result["processes"]
    if len(processes) > 1:
        medians = [each["p50_ms"] for each in processes]
        facts["processes"] = f"{len(processes)}, with medians from {time(min(medians))} to {time(max(medians))}"
    facts["throughput"] = throughput(result)
    warm_up = result["warm_up"]
    facts["calls"] = (
        f"{latency['calls']:,} in {result['seconds']:.1f} s, after {_count(warm_up['calls'], 'call')} "
        f"({warm_up['seconds']:.1f} s) of warm-up"
    )
    if "drift" in latency:
        drift = f"{latency['drift']['change_percent']:+.1f} % from the first to the last tenth"
        facts["drift"] = f"{drift} of the process with most" if len(processes) > 1 else drift
    cold = result["cold_start"]
    facts["cold start"] = (
        f"load {milliseconds(cold['session_load_ms'])}, first call {milliseconds(cold['first_call_ms'])}"
    )
    if "engine_build" in result:
        facts["engine"] = built(result["engine_build"])
    peak = max((each.get("peak_resident_bytes", 0) for each in processes), default=0)
    if peak:
        facts["memory"] = f"{peak / 1e6:.1f} MB at most, with Python and the engine"
    facts |= machine_facts(result)
    notes = [f"note: {note}" for note in result["notes"]]
    return "\n".join([title, "", *_columns(rows), "", *pairs(facts), *([""] if notes else []), *notes])


def built(build: Mapping[str, Any]) -> str:
    """Say where an engine comes from that is built where it runs."""
    when = "by an earlier run" if build["cached"] else "now"
    return f"built here {when} in {build['seconds']:.1f} s, kept as {build['key'][:12]}"


def loadgen_text(result: Mapping[str, Any]) -> str:
    """Show LoadGen's own figures beside ours of the same samples."""
    percentiles, theirs = result["latency"]["percentiles"], result["early_stopping_ms"]
    unit, scale = _unit(result["warm_up_p50_ms"])
    rows = [("latency", "measured", "at most, 99 % sure", "LoadGen's own")]
    for name, each in percentiles.items():
        figures = (each["measured_ms"], each["early_stopping_ms"], theirs.get(name))
        rows.append((name, *("" if ms is None else f"{ms * scale:.2f} {unit}" for ms in figures)))
    facts = {
        "queries": f"{result['queries']:,}, {'valid' if result['valid'] else 'INVALID'} by LoadGen's rules",
        "own loop": f"p50 {result['warm_up_p50_ms'] * scale:.2f} {unit} just before",
    }
    title = f"{_model_name(result)}: {result['format']} on {result['engine']}, single stream under LoadGen"
    return "\n".join([title, "", *_columns(rows), "", *pairs(facts)])


def throughput(result: Mapping[str, Any]) -> str:
    """Say the throughput of a document of `bench`, and what it is of."""
    rows = f"{result['throughput_rows_per_s']:,.0f} rows/s"
    if "server" not in result:
        return f"{rows}, {'offline' if result.get('scenario') == 'offline' else 'one call after the other'}"
    server = result["server"]
    return (
        f"{rows}, the largest rate of random arrivals with {server['percentile']:g} % within "
        f"{server['bound_ms']:g} ms: {server['over']} of {server['queries']:,} over, {server['allowed']} allowed; "
        f"without a queue {server['capacity_per_s']:,.0f} calls/s"
    )


def accuracy_text(result: AccuracyResult) -> str:
    low, high = result.interval
    facts = {
        "accuracy": f"{_percent(result.accuracy)} (95 % interval {_percent(low)} to {_percent(high)})",
        "correct": f"{result.correct:,} of {result.total:,} rows",
    }
    if result.agreement is not None:
        rate, equal = (
            _percent(result.agreement.rate),
            f"{result.agreement.equal:,} of {result.agreement.total:,}",
        )
        facts["agreement"] = f"{rate} with the reference ({equal} rows)"
    engine = _engine(result.engine, result.engine_version, result.choice.to_json())
    title = f"{result.bundle}: {result.format} on {engine}, batch {result.batch}"
    return "\n".join([title, "", *pairs(facts), "", *_class_table(result), *_confusions(result)])


def classified_text(classified: Sequence[Classified]) -> str:
    width = max((len(each.class_name) for each in classified), default=0)
    return "\n".join(
        f"{each.class_name:<{width}}  {_percent(each.probability):>8}  {clipped(each.text)}".rstrip()
        for each in classified
    )


def bundle_facts(bundle: Bundle) -> dict[str, str]:
    """Return what a bundle's manifest says, in words, without its formats."""
    subclasses = f" with {bundle.subclasses} subclasses each" if bundle.subclasses > 1 else ""
    return {
        "bundle": f"{bundle.name} (stage {bundle.stage})",
        "checksum": bundle.checksum,
        "recipe key": bundle.recipe_key or "none",
        "classes": f"{bundle.classes}{subclasses}: {_shortened(bundle.class_names)}",
        "input": _tensor(bundle.input) + f" {bundle.input.layout}",
        **({"text": str(bundle.text)} if bundle.text else {}),
        **({"table": str(bundle.table)} if bundle.table else {}),
        "output": ", ".join(_tensor(each) for each in bundle.outputs),
        "verified batches": ", ".join(map(str, bundle.batch_sizes)),
        **{name.replace("_", " "): f"{value:g}" for name, value in bundle.metrics.items()},
    }


def _model_name(result: Mapping[str, Any]) -> str:
    """Return the name of a result's bundle, or of the file where it is no bundle's."""
    return str(result["bundle"]["name"] if result["bundle"] else result["model"]["file"])


def _engine(name: str, version: str, choice: Mapping[str, Any]) -> str:
    """Return an engine with what was chosen of it: `openvino 2026.4.1 (bf16)`."""
    chosen = choice.get("provider") or choice.get("precision")
    return f"{name} {version}{f' ({chosen})' if chosen else ''}"


def _class_table(result: AccuracyResult) -> list[str]:
    counted = [each for each in result.per_class if each.total]
    worst = sorted(counted, key=lambda each: each.correct / each.total)[:_WORST_CLASSES]
    rows = [("class", "correct", "of", "share")]
    rows += [(each.name, str(each.correct), str(each.total), _percent(each.correct / each.total)) for each in worst]
    left_out = len(counted) - len(worst)
    return [*_columns(rows), *([f"({left_out} better classes not shown)"] if left_out else [])]


def _confusions(result: AccuracyResult) -> list[str]:
    pairs = [
        (int(count), result.class_names[label], result.class_names[predicted])
        for (label, predicted), count in _entries(result.confusion)
        if label != predicted and count
    ]
    if not pairs:
        return []
    most = sorted(pairs, key=lambda each: -each[0])[:_CONFUSIONS]
    return [
        "",
        "most often confused:",
        *(f"  {label} taken for {other}: {count}" for count, label, other in most),
    ]


def _entries(confusion: Any) -> list[tuple[tuple[int, int], int]]:
    return [((i, j), count) for i, row in enumerate(confusion.tolist()) for j, count in enumerate(row)]


def _unit(ms: float) -> tuple[str, float]:
    """Return the unit that fits, and how many of it a millisecond has."""
    return ("us", 1e3) if ms < 1 else ("ms", 1.0)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {spec.in_words()}"


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names) - 10} more)" if len(names) > 10 else "")


def clipped(value: str, width: int = 100) -> str:
    line = " ".join(value.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def pairs(facts: Mapping[str, str]) -> list[str]:
    width = max(map(len, facts), default=0)
    return [f"{name:<{width}}  {value}" for name, value in facts.items()]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{each:>{w}}" for each, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
