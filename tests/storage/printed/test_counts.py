"""Counts by reason are shown alike everywhere."""

import re
from collections import Counter
from pathlib import Path

from storage.printed.counts import counts_in_words

ROOT = Path(__file__).parents[3]
BY_HAND = re.compile(r'join\(\s*f"\{reason\}: \{count(:,)?\}"|\{dict\(\w+\)( or |\})')
"""a list of reasons that is joined where it is shown, or shown as Python writes it"""


def test_counts_are_in_one_line() -> None:
    assert counts_in_words(Counter(too_short=1204, empty=3)) == "too_short: 1,204, empty: 3"
    assert (counts_in_words({}), counts_in_words({}, "no row was read")) == ("none", "no row was read")


def test_no_module_joins_them_by_hand() -> None:
    files = [file for package in ("alm_pipeline", "flows", "storage") for file in (ROOT / package).rglob("*.py")]
    found = {str(file.relative_to(ROOT)) for file in files if BY_HAND.search(file.read_text())}
    assert found == {"storage/printed/counts.py"}
