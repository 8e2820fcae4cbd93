"""Numbers with units  ->  the text people read."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Decimal units, as memory bandwidths are given: 1.19 GB."""
    return _scaled(count, "B")


def flops_text(count: float) -> str:
    return _scaled(count, "FLOP")


def rate_text(count: float, unit: str) -> str:
    return _scaled(count, unit) + "/s"


def tokens_text(tokens_per_s: float) -> str:
    """9.41 tokens/s, 310 tokens/s, 11,300 tokens/s."""
    return (f"{tokens_per_s:.3g}" if tokens_per_s < 999.5 else f"{tokens_per_s:,.0f}") + " tokens/s"


def count_text(count: int) -> str:
    return f"{count:,}"


def seconds_text(seconds: float) -> str:
    """3 µs, 1.2 ms, 14.3 s, 2 min 5 s, 1 h 3 min."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _scaled(count: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 999.5:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} T{unit}"
