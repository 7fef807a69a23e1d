"""The stage SIGNATURES → DECISIONS: one pass over all shards that decides which documents are left out, and why.

A document repeats an earlier one if their texts have one hash, or if one of their bands does; the first by position
stays. What comes later decides nothing, so that more files at a corpus's end, or another source at a mixture's end,
move no decision. An earlier document counts whether or not it was itself left out: what is nearly the same goes
together.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.config import DeduplicationConfig
from alm_pipeline.corpus.documents import Document
from storage.columns import flatten_lists
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.schemas import Kind

STAGE_VERSION = 1
EXACT, NEAR, CONTAMINATED = "exact_duplicate", "near_duplicate", "contaminated"
Longs = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def decisions_dataset(
    signatures: Dataset, deduplicate: DeduplicationConfig | None, earlier: Mapping[str, Dataset]
) -> Dataset:
    """Return the decisions on a corpus's documents. `earlier` has the signatures of the sources before it, by name."""
    identity = {
        "stage_version": STAGE_VERSION,
        "signatures": signatures.name,
        "exact": bool(deduplicate and deduplicate.exact),
        "near": bool(deduplicate and deduplicate.near),
        **({"inputs": {f"{name}: signatures": other.name for name, other in earlier.items()}} if earlier else {}),
    }
    return Dataset(signatures.root, Kind.DECISIONS, signatures.label, identity)


def write_decisions(decisions: Dataset, signatures: Dataset, earlier: Mapping[str, Dataset]) -> Manifest:
    """Decide on every document of complete signatures; write each shard that is not written yet."""
    if manifest := decisions.manifest():
        return manifest
    tables = [_read(dataset) for dataset in (*earlier.values(), signatures)]
    before = sum(table.num_rows for table in tables[:-1])
    table = pa.concat_tables(tables)
    names = [*(f"{name}: " for name in earlier), ""]
    of = np.repeat(np.arange(len(tables)), [each.num_rows for each in tables])
    firsts = _Firsts.of(table, exact=decisions.identity["exact"], near=decisions.identity["near"])
    ids, questions = table["id"].to_pylist(), table["question"].to_pylist()

    def row(number: int) -> tuple[str | None, str | None]:
        """Return why a document is left out, and what of: the first question, or the document that it repeats."""
        if questions[number] is not None:
            return CONTAMINATED, questions[number]
        for reason, first in ((EXACT, firsts.exact[number]), (NEAR, firsts.near[number])):
            if first < number:
                return reason, f"{names[of[first]]}{ids[first]}"
        return None, None

    start = before
    for shard, record in enumerate(signatures.complete_manifest().shards):
        rows = range(start, start + record.rows)
        start += record.rows
        if not decisions.record(shard):
            _write_shard(decisions, shard, [ids[number] for number in rows], [row(number) for number in rows])
    return decisions.finish(len(signatures.complete_manifest().shards))


def _read(signatures: Dataset) -> pa.Table:
    shards = range(len(signatures.complete_manifest().shards))
    columns = ["id", "text_hash", "bands", "question"]
    tables = [signatures.read_shard(shard, columns).select(columns) for shard in shards]
    empty = {"id": pa.string(), "text_hash": pa.uint64(), "bands": pa.list_(pa.uint64()), "question": pa.string()}
    return pa.concat_tables(tables) if tables else pa.schema(empty).empty_table()


@dataclass(frozen=True)
class _Firsts:
    """The first document that each of D documents repeats; itself, if it repeats none."""

    exact: Longs
    """[D]"""
    near: Longs
    """[D]"""

    @classmethod
    def of(cls, table: pa.Table, *, exact: bool, near: bool) -> "_Firsts":
        itself = np.arange(table.num_rows)
        hashes = table["text_hash"].to_numpy()
        bands, offsets = flatten_lists(table["bands"])
        return cls(
            first_of(hashes, itself, table.num_rows) if exact else itself,
            first_of(bands, np.repeat(itself, np.diff(offsets)), table.num_rows) if near else itself,
        )


def first_of(hashes: Hashes, documents: Longs, count: int) -> Longs:
    """Return for each of `count` documents ([D]) the first one that has one of its hashes.

    `hashes` [H] are in the order of the `documents` [H] that have them.
    """
    firsts = np.arange(count)
    if len(hashes):
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        np.minimum.at(firsts, documents, documents[first[inverse]])
    return firsts


def _write_shard(
    decisions: Dataset, shard: int, ids: Sequence[str], rows: Sequence[tuple[str | None, str | None]]
) -> None:
    reasons, repeats = [reason for reason, _ in rows], [other for _, other in rows]
    columns = {
        "id": ids,
        "reason": pa.array(reasons, pa.string()),
        "repeats": pa.array(repeats, pa.string()),
    }
    counts = Counter(reason for reason in reasons if reason)
    decisions.write_shard(shard, columns, {"documents": len(ids), "kept": len(ids) - counts.total()}, counts)


def kept_documents(decisions: Dataset, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a corpus, in order, that are not left out; count the others by reason.

    Raises UserError if a document is not the one that was decided on.
    """
    for document, (id_, reason) in zip_longest(documents, _read_decisions(decisions), fillvalue=("", None)):
        found = document.id if isinstance(document, Document) else None
        if found != id_:
            raise UserError(
                f"{decisions.url}: has a decision on the document {id_!r} where the corpus has {found!r}: it was "
                "changed meanwhile: run again"
            )
        if reason:
            dropped[reason] += 1
        elif isinstance(document, Document):
            yield document


def _read_decisions(decisions: Dataset) -> Iterator[tuple[str, str | None]]:
    for shard in range(len(decisions.complete_manifest().shards)):
        table = decisions.read_shard(shard, ["id", "reason"])
        yield from zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True)
