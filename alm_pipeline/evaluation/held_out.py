"""Which held-out examples a student is evaluated on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.columns import list_rows
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError

_SEED = 0


@dataclass(frozen=True)
class HeldOut:
    """Held-out examples that both sides could tokenize."""

    ids: Mapping[int, pa.Array]
    """by shard, in order; shards without any are left out"""
    is_all: bool
    """there are no others"""

    @classmethod
    def of(cls, caches: Mapping[str, Dataset], at_most: int | None = None) -> "HeldOut":
        """All, or `at_most` drawn from all: the same ones every time.

        `caches` are the datasets by role, as `Pipeline.caches`. Raises UserError when nothing is held out.
        """
        shards = range(len(caches["alignments"].complete_manifest().shards))
        ids = {shard: found for shard in shards if len(found := _ids(caches, shard))}
        total = sum(map(len, ids.values()))
        if not total:
            raise UserError(
                f"{caches['examples'].url}: no example is held out, so nothing can be evaluated: "
                "raise corpus.held_out, or use a larger corpus"
            )
        if at_most is None or at_most >= total:
            return cls(ids, is_all=True)
        drawn = np.sort(np.random.default_rng(_SEED).choice(total, at_most, replace=False))
        return cls(_chosen(ids, drawn), is_all=False)

    def __len__(self) -> int:
        return sum(map(len, self.ids.values()))

    def rows(self, table: pa.Table, shard: int) -> pa.Table:
        """Those of a shard's rows, which have an `id`, that are of these examples."""
        return table.filter(pc.is_in(table["id"], value_set=self.ids[shard]))

    def column(self, caches: Mapping[str, Dataset], name: str, column: str) -> list[npt.NDArray[np.generic]]:
        """One dataset's list column, an array an example."""
        found: list[npt.NDArray[np.generic]] = []
        for shard in self.ids:
            table = read_aligned(caches, shard, {"examples": (), name: (column,)})[name]
            found += list_rows(self.rows(table, shard)[column])
        return found


def _ids(caches: Mapping[str, Dataset], shard: int) -> pa.Array:
    tables = read_aligned(caches, shard, {"examples": ("split",), "alignments": ("kinds",)})
    held_out = pc.equal(tables["examples"]["split"], "held_out")
    aligned = pc.greater(pc.list_value_length(tables["alignments"]["kinds"]), 0)
    return tables["examples"]["id"].filter(pc.and_(held_out, aligned)).combine_chunks()


def _chosen(ids: Mapping[int, pa.Array], numbers: npt.NDArray[np.int64]) -> dict[int, pa.Array]:
    """Those of these numbers, counted over all shards."""
    chosen, first = {}, 0
    for shard, found in ids.items():
        own = numbers[(numbers >= first) & (numbers < first + len(found))] - first
        if len(own):
            chosen[shard] = found.take(own)
        first += len(found)
    return chosen
