"""A plan's numbers as text. An estimate begins with `~` and has two or three digits that count."""

import math
from collections.abc import Callable

from alm_pipeline.planning.plan import Amount


def count_text(value: float) -> str:
    return f"{value:,.0f}"


def amount_text(amount: Amount | None, show: Callable[[float], str] = count_text) -> str:
    """Show an amount: `59,673`, `~59,700`, or `unknown`."""
    if amount is None:
        return "unknown"
    return show(amount.value) if amount.exact else f"~{show(_rounded(amount.value))}"


def _rounded(value: float) -> float:
    """Round to three digits."""
    if not value:
        return 0.0
    digits = 2 - math.floor(math.log10(abs(value)))
    return round(value, digits)


def bytes_text(value: float) -> str:
    """Show bytes in the largest unit of 1,000 that leaves at least 1."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def duration_text(seconds: float) -> str:
    """Show a duration: `40 s`, `12 min`, `3.5 h`, `12 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"


def price_text(value: float) -> str:
    return f"{value:,.2f}"
