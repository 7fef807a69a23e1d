"""The stage EXAMPLES → SUBSTRINGS: what tokenizers are drawn from, for each way of splitting texts."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alm_pipeline.hypernetwork.sampling.pretokenizers import count_words
from alm_pipeline.hypernetwork.sampling.settings import Pretokenizer, SamplerConfig
from alm_pipeline.hypernetwork.sampling.substrings import Substrings, score_substrings
from alm_pipeline.runtime.progress import track
from storage.dataset import Dataset
from storage.errors import UserError
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease

STAGE_VERSION = 1
FILE = "substrings.parquet"
SCHEMA = pa.schema([("pretokenizer", pa.string()), ("spelling", pa.binary()), ("score", pa.int64())])
"""The columns of `substrings.parquet`, with one row per substring, highest scores first in each way of splitting."""
_SHARDS = 16
"""that are read at most"""


def substrings_folder(examples: Dataset, settings: SamplerConfig) -> StoredFolder:
    """Return the folder of the substrings of these examples, whether or not it exists yet."""
    used = {"pretokenizers", "longest", "count_bytes", "candidates"}
    identity = {
        "stage_version": STAGE_VERSION,
        "examples": examples.name,
        "settings": settings.model_dump(mode="json", include=used),
    }
    return StoredFolder(examples.root, "substrings", examples.label, identity)


def write_substrings(folder: StoredFolder, examples: Dataset, settings: SamplerConfig) -> FolderManifest:
    """Count the substrings of training texts, unless they are counted.

    Raises UserError if no example has a text, or for conversations: drawn tokenizers have no chat template.
    """

    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        found = {name: _scored(examples, name, settings) for name in settings.pretokenizers}
        target.path.mkdir(parents=True, exist_ok=True)
        pq.write_table(_table(found), target.path / FILE, compression="zstd")
        return target.finish({"substrings": {name: len(part.scores) for name, part in found.items()}}, lease)

    return make_folder(folder, make)


def _scored(examples: Dataset, pretokenizer: Pretokenizer, settings: SamplerConfig) -> Substrings:
    words = Counter[bytes]()
    with track(f"substrings {pretokenizer}", None, "B") as advance:
        for texts in training_texts(examples, settings.count_bytes):
            words += count_words(texts, pretokenizer)
            advance(sum(len(text.encode()) for text in texts))
    return score_substrings(words, settings.longest, settings.candidates)


def training_texts(examples: Dataset, most_bytes: int) -> Iterator[list[str]]:
    """Yield the training texts of some shards, spread evenly, of `most_bytes` bytes together.

    Raises UserError if there is none, or if they are conversations.
    """
    count, any_text = len(examples.complete_manifest().shards), False
    shards = [k * count // min(count, _SHARDS) for k in range(min(count, _SHARDS))]
    for shard in shards:
        table = examples.read_shard(shard, ["split", "text", "messages"])
        refuse_conversations(table, examples)
        texts = table.filter(pc.equal(table["split"], "train"))["text"].to_pylist()
        chosen = _first_bytes(texts, most_bytes // len(shards))
        any_text = any_text or bool(chosen)
        yield chosen
    if not any_text:
        raise UserError(f"{examples.url}: no text to train on: use a larger corpus, or a smaller corpus.held_out")


def refuse_conversations(table: pa.Table, examples: Dataset) -> None:
    """Raise UserError if a row of a shard of examples is a conversation."""
    if table["messages"].null_count < table.num_rows:
        raise UserError(
            f"{examples.url}: holds conversations, and a hypernetwork is trained on plain texts: name a column of text "
            "as corpus.text, and leave corpus.messages out"
        )


def _first_bytes(texts: list[str], most: int) -> list[str]:
    chosen, size = list[str](), 0
    for text in texts:
        size += len(text.encode())
        if chosen and size > most:
            break
        chosen.append(text)
    return chosen


def _table(found: Mapping[Pretokenizer, Substrings]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for name, part in found.items():
        columns["pretokenizer"] += [name] * len(part.scores)
        columns["spelling"] += part.spellings
        columns["score"] += part.scores.tolist()
    return pa.table(columns, schema=SCHEMA)


def read_substrings(folder: StoredFolder) -> dict[Pretokenizer, Substrings]:
    """Read the substrings of a complete folder. Raises UserError if it is incomplete or damaged."""
    table, found = pq.read_table(folder.fetch() / FILE), dict[Pretokenizer, Substrings]()
    for name in folder.identity["settings"]["pretokenizers"]:
        rows = table.filter(pc.equal(table["pretokenizer"], name))
        found[name] = Substrings(rows["spelling"].to_pylist(), rows["score"].to_numpy())
    return found
