"""Amounts as a person reads them."""

from __future__ import annotations


def size(count: int) -> str:
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1e6:,.2f} MB"


def count(number: int) -> str:
    """Return a number with three digits and k, M, G, T, P or E: 1.81 G."""
    scaled = float(number)
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if scaled < 999.5 or unit == " E":
            break
        scaled /= 1000
    return f"{scaled:.{max(0, 3 - len(str(round(scaled))))}f}{unit}" if unit else str(number)


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{1000 * value:.1f} µs" if value < 1 else f"{value:.2f} ms"


def millijoules(value: float) -> str:
    return f"{1000 * value:.1f} µJ" if value < 1 else f"{value:.2f} mJ" if value < 1000 else f"{value / 1000:.2f} J"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
