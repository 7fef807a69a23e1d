"""The stage TOKENS × TOKENS × ALIGNMENTS → PAIR BIASES: a table for the chunking `pair_bias`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.chunking.ends import SideTokens
from alm_pipeline.objective.chunking.pair_bias import PairBiases, Pairs, pair_biases
from alm_pipeline.runtime.progress import track
from storage.columns import flatten_lists
from storage.dataset import Dataset, read_aligned
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease
from storage.schemas import ChunkKind, TokenKind

STAGE_VERSION = 1
FILE = "pair_biases.parquet"
SCHEMA = pa.schema(
    [
        ("teacher_id", pa.int32()),
        ("student_id", pa.int32()),
        ("towards_teacher", pa.float32()),
        ("towards_student", pa.float32()),
    ]
)
"""The columns of `pair_biases.parquet`, with one row per pair of tokens at the end of a chunk, sorted by the ids."""
_COLUMNS = {
    "teacher_tokens": ("token_ids",),
    "student_tokens": ("token_ids",),
    "alignments": ("teacher_tokens", "student_tokens", "kinds"),
}


def token_counts(tokens: Dataset) -> npt.NDArray[np.int64]:
    """[highest id + 1] how often each token occurs in the corpus's texts, without the scaffold around them."""
    total = np.zeros(0, np.int64)
    for shard in range(len(tokens.complete_manifest().shards)):
        table = tokens.read_shard(shard, ["token_ids", "kinds"])
        ids, kinds = flatten_lists(table["token_ids"])[0], flatten_lists(table["kinds"])[0]
        counts = np.bincount(ids[kinds == TokenKind.CONTENT], minlength=len(total))
        counts[: len(total)] += total
        total = counts
    return total


def chunk_end_pairs(datasets: Mapping[str, Dataset]) -> Pairs:
    """Return the unique pairs of tokens at the ends of content chunks.

    `datasets` has `teacher_tokens`, `student_tokens` and `alignments`; one shard of them is in memory at a time.
    """
    keys = np.zeros(0, np.int64)
    shards = len(datasets["alignments"].complete_manifest().shards)
    with track("chunk ends", shards, "shards") as advance:
        for shard in range(shards):
            keys = np.union1d(keys, _shard_pairs(read_aligned(datasets, shard, _COLUMNS)).keys)
            advance(1)
    return Pairs.of_keys(keys)


def _shard_pairs(tables: Mapping[str, pa.Table]) -> Pairs:
    content = flatten_lists(tables["alignments"]["kinds"])[0] == ChunkKind.CONTENT
    sides = (
        SideTokens(*flatten_lists(tables[side]["token_ids"]), *flatten_lists(tables["alignments"][side]))
        for side in ("teacher_tokens", "student_tokens")
    )
    return Pairs.of(*(side.last()[content] for side in sides))


def pair_bias_folder(alignments: Dataset, teacher: LoadedTokenizer, student: LoadedTokenizer) -> StoredFolder:
    """Return the folder for the biases of the pairs in these alignments, whether or not it exists yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "alignments": alignments.name,
        "teacher_tokenizer": teacher.identity,
        "student_tokenizer": student.identity,
    }
    return StoredFolder(alignments.root, "pair_biases", alignments.label, identity)


def write_pair_biases(
    folder: StoredFolder,
    datasets: Mapping[str, Dataset],
    teacher: LoadedTokenizer,
    student: LoadedTokenizer,
) -> FolderManifest:
    """Compute the biases, unless they exist. `datasets` is as for `chunk_end_pairs`."""

    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        biases = pair_biases(
            teacher.fast,
            student.fast,
            token_counts(datasets["teacher_tokens"]),
            token_counts(datasets["student_tokens"]),
            chunk_end_pairs(datasets),
        )
        for tokenizer in (teacher, student):
            tokenizer.check_unchanged()
        target.path.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(list(biases), schema=SCHEMA), target.path / FILE, compression="zstd")
        return target.finish(_results(biases), lease)

    return make_folder(folder, make)


def _results(biases: PairBiases) -> dict[str, Any]:
    """Return the number of pairs, and the numbers of pairs within several values of γ."""
    within = {str(gamma): int(biases.at_most(gamma, *biases[:2]).sum()) for gamma in (0.0, 0.001, 0.01, 0.1)}
    return {"pairs": len(biases.teacher_ids), "pairs_within": within}


def read_pair_biases(folder: StoredFolder) -> PairBiases:
    """Read the biases of a complete folder. Raises UserError if it is incomplete or damaged."""
    table = pq.read_table(folder.fetch() / FILE)
    return PairBiases(*(table[name].to_numpy() for name in SCHEMA.names))
