"""Counts by reason, in words."""

from collections.abc import Mapping


def counts_in_words(counts: Mapping[str, int], nothing: str = "none") -> str:
    """Return counts by reason in one line, `too_short: 1,204, empty: 3`; `nothing` if there are none."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in counts.items()) or nothing
