"""Finds scores that are not finite: of a model whose numbers overflow, of damaged weights, or in a stored shard.

NaN among scores means one thing only: a sequence's first token has no prediction. The log-probability of a boundary is
-inf if the vocabulary has no boundary token. Every other score is a finite number.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.columns import flatten_lists
from storage.dataset import Dataset, Manifest, open_dataset
from storage.errors import UserError
from storage.schemas import Kind
from storage.upkeep.catalog import CatalogEntry
from storage.upkeep.verify import Damage, shard_damage, verify_entry

Floats = npt.NDArray[np.float32]


class ScoreFault(NamedTuple):
    """The first score that is not finite."""

    example: int
    token: int
    """counted within the example, from 0"""
    quantity: str
    value: float

    def __str__(self) -> str:
        return f"the {self.quantity} is {self.value}"


def first_fault(logprobs: Floats, boundary_logprobs: Floats, offsets: npt.NDArray[np.int64]) -> ScoreFault | None:
    """Return the first wrong score of E examples, None if all are right: arrays [tokens] with offsets [E + 1]."""
    wrong = ~np.isfinite(logprobs)
    starts = offsets[:-1][offsets[:-1] < offsets[1:]]
    wrong[starts] &= ~np.isnan(logprobs[starts])
    wrong_boundary = np.isnan(boundary_logprobs) | (boundary_logprobs == np.inf)
    if not (wrong.any() or wrong_boundary.any()):
        return None
    place = int(np.argmax(wrong | wrong_boundary))
    example = int(np.searchsorted(offsets, place, side="right")) - 1
    quantity, column = ("log-probability", logprobs)
    if wrong_boundary[place]:
        quantity, column = ("log-probability of a boundary", boundary_logprobs)
    return ScoreFault(example, place - int(offsets[example]), quantity, float(column[place]))


def first_fault_of_rows(logprobs: Sequence[Floats], boundary_logprobs: Sequence[Floats]) -> ScoreFault | None:
    """Return what `first_fault` does, from one array per example."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in logprobs], dtype=np.int64)])
    empty = np.zeros(0, np.float32)
    return first_fault(np.concatenate([empty, *logprobs]), np.concatenate([empty, *boundary_logprobs]), offsets)


def check_stored_scores(tables: Mapping[str, pa.Table], scores: Dataset, shard: int) -> None:
    """Raise UserError if a stored score is not finite. `tables["scores"]` is the shard, with its ids."""
    if problem := _problem(tables["scores"]):
        raise UserError(
            f"{scores.shard_url(shard)}: {problem}: the file is damaged, or an earlier version stored what overflowed: "
            f"`alm repair {scores.url} --checksums` scores it again; if it overflows again, set score.dtype to "
            "bfloat16 or float32"
        )


def find_damages(entry: CatalogEntry, checksums: bool = False) -> list[Damage]:
    """Return the damages of a dataset or folder; with checksums also shards of scores that are not finite."""
    damages = verify_entry(entry, checksums)
    if checksums and entry.kind == Kind.TEACHER_SCORES and isinstance(entry.manifest, Manifest) and not damages:
        scores = open_dataset(entry.url)
        for shard in range(len(entry.manifest.shards)):
            if problem := _problem(scores.read_shard(shard)):
                damages.append(shard_damage(entry, shard, problem))
    return damages


def _problem(table: pa.Table) -> str:
    """Return which score of a shard is not finite; "" if all are right."""
    (logprobs, offsets), (boundary_logprobs, _) = (
        flatten_lists(table[name]) for name in ("logprobs", "boundary_logprobs")
    )
    fault = first_fault(logprobs, boundary_logprobs, offsets)
    return f"example {table['id'][fault.example]}, token {fault.token}: {fault}" if fault else ""


def why_not_finite(dtype: str) -> str:
    """Return the likely cause of numbers that are not finite in a model of this dtype, and what to do."""
    if dtype == "float16":
        return (
            "float16 ends at 65504, and this model computes larger numbers: set score.dtype (--dtype) to bfloat16 or "
            "float32"
        )
    further = " set score.dtype (--dtype) to float32, and if it stays," if dtype != "float32" else ""
    return (
        f"a number overflows in {dtype}, probably because of damaged weights:{further} fetch or train the model again"
    )
