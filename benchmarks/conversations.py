"""What model families' chat templates show of each kind of conversation, and what any two of them share.

python -m benchmarks.conversations [--families qwen2_5 llama3_1 …] [--pairs]

The first table has the share of the bytes of the shared text that a family's tokens cover, per kind; `–` where the
template refuses all of its conversations. The second has, for the bytes of tool calls and of reasoning, the share that
it shows. With --pairs: the share of the assistant's bytes that two families learn from each other.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from storage.schemas import TokenKind
from tests.conversation_kinds import KINDS, REFUSED
from tests.families import FAMILIES
from tests.family_sides import (
    LEARNED,
    AlignedPair,
    Side,
    conversations,
    kinds_of_bytes,
    roles_of_bytes,
    side,
    sizes,
    units,
)

WHAT = ("name", "key", "value", "arguments")


def percent(part: np.ndarray, of: np.ndarray) -> str:
    return f"{100 * part[of].mean():.0f}" if of.any() else "–"


def shown_of_kinds(own: Side) -> list[str]:
    kept = np.repeat(own.kept, sizes())
    return [percent(own.map.shown, kept & (kinds_of_bytes() == kind)) for kind in KINDS if kind not in REFUSED]


def shown_of_calls(own: Side) -> list[str]:
    """The share of names, keys, values and whole arguments of calls that are covered, and of reasoning."""
    starts = np.cumsum(sizes()) - sizes()
    found: dict[str, list[bool]] = {what: [] for what in WHAT}
    for row, conversation in enumerate(conversations()):
        for unit in units(conversation) if own.kept[row] else ():
            if unit.what in found:
                found[unit.what].append(bool(own.map.shown[starts[row] + unit.start : starts[row] + unit.end].all()))
    kept = np.repeat(own.kept, sizes())
    shares = [f"{100 * np.mean(flags):.0f}" if flags else "–" for flags in found.values()]
    reasons = Counter(reason for reason in own.batch.dropped if reason)
    scaffold = Counter(TokenKind(kind).name for kind in own.batch.kinds.tolist())
    return [
        *shares,
        percent(own.map.shown, kept & (roles_of_bytes() == "reasoning")),
        percent(own.map.clean, own.map.shown),
        *(str(scaffold[kind.name]) for kind in TokenKind if kind > TokenKind.CONTENT),
        ", ".join(f"{reason} {count}" for reason, count in reasons.items()),
    ]


def shares_of_pair(teacher: str, student: str) -> str:
    """The share that is learned of the assistant's bytes that both sides show."""
    pair = AlignedPair.of(teacher, student)
    both = pair.teacher.map.shown & pair.student.map.shown & np.isin(roles_of_bytes(), LEARNED) & pair.in_kept
    return percent(pair.learned, both)


def print_table(title: str, columns: Sequence[str], rows: dict[str, list[str]]) -> None:
    table = Table("family", *columns, title=title, box=None, padding=(0, 1))
    for name, values in rows.items():
        table.add_row(name, *values)
    Console(width=400).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--pairs", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sides = {name: side(name) for name in options.families}
    kinds = [kind for kind in KINDS if kind not in REFUSED]
    print_table("% of bytes shown", kinds, {name: shown_of_kinds(own) for name, own in sides.items()})
    scaffold = [kind.name.lower() for kind in TokenKind if kind > TokenKind.CONTENT]
    print_table(
        "% shown of calls and reasoning, % of shown bytes in tokens of content alone, tokens, conversations dropped",
        [*WHAT, "reasoning", "clean", *scaffold, "dropped"],
        {name: shown_of_calls(own) for name, own in sides.items()},
    )
    if options.pairs:
        rows = {name: [shares_of_pair(name, other) for other in sides] for name in sides}
        print_table("% learned of the assistant's bytes that both show", list(sides), rows)


if __name__ == "__main__":
    main()
