"""What an edit does to a model: each measure before and after, with the interval of the difference.

Both models are measured on the same texts, prompts and questions, so the intervals are those of a paired bootstrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alm_pipeline.editing.measurements import Items
from alm_pipeline.evaluation.bootstrap import Interval, paired_intervals

WORSE = 0.2
"""the share by which control bits per byte may grow before it is called damage"""


@dataclass(frozen=True)
class Measure:
    """A number before and after the edit, and the difference with its interval."""

    name: str
    before: float
    after: float
    difference: Interval
    items: int

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def compare(before: Mapping[str, Items], after: Mapping[str, Items]) -> list[Measure]:
    """Return the measures of a model before and after an edit, by the same names, of the same items."""
    return [_measure(name, before[name], after[name]) for name in before]


def _measure(name: str, before: Items, after: Items) -> Measure:
    sums, sizes = (np.stack(pair) for pair in ((before.sums, after.sums), (before.sizes, after.sizes)))
    base, edited = paired_intervals(sums, sizes)
    assert edited.difference
    return Measure(name, base.value.value, edited.value.value, edited.difference, len(before.sums))


def damage(measures: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the control is worse by more than `WORSE`."""
    control = measures[0]
    growth = control["after"] / control["before"] - 1
    if growth <= WORSE:
        return None
    return (
        f"control bits per byte went from {control['before']:.3f} to {control['after']:.3f} ({growth:+.0%}): the edit "
        "damages the model; edit the MLP's outputs, fewer or later layers, or use a smaller strength"
    )
