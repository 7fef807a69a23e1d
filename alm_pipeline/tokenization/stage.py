"""The stage EXAMPLES → TOKENS: one dataset a tokenizer."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from alm_pipeline.models import label, load_tokenizer, tokenizer_identity
from alm_pipeline.progress import track
from alm_pipeline.tokenization.encoding import ByteEncoder, Dropped, EncodedExample
from storage.columns import join_rows
from storage.dataset import Dataset, Manifest
from storage.schemas import Kind

STAGE_VERSION = 1
_EXAMPLES_A_CALL = 1024


def tokens_dataset(examples: Dataset, tokenizer: str, max_tokens: int | None) -> Dataset:
    """The tokens of these examples by a tokenizer, whether or not they are written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "examples": examples.name,
        "tokenizer": tokenizer_identity(tokenizer),
        "max_tokens": max_tokens,
    }
    return Dataset(examples.root, Kind.TOKENS, f"{examples.label}-{label(tokenizer)}", identity)


def tokenize(examples: Dataset, tokens: Dataset, tokenizer: str, max_tokens: int | None) -> Manifest:
    """Encode every shard of the examples that is not encoded yet."""
    if manifest := tokens.manifest():
        return manifest
    source = examples.complete_manifest()
    encoder = ByteEncoder(load_tokenizer(tokenizer), max_tokens)
    with track(f"tokenize {tokens.label}", source.counts["text_bytes"], "B") as advance:
        for shard, record in enumerate(source.shards):
            if not tokens.record(shard):
                _tokenize_shard(examples, tokens, shard, encoder)
            advance(record.counts["text_bytes"])
    return tokens.finish(len(source.shards))


def _tokenize_shard(examples: Dataset, tokens: Dataset, shard: int, encoder: ByteEncoder) -> None:
    table = examples.read_shard(shard)
    encoded = [
        example
        for start in range(0, table.num_rows, _EXAMPLES_A_CALL)
        for example in _encode_batch(table.slice(start, _EXAMPLES_A_CALL), encoder)
    ]
    tokens.write_shard(
        shard,
        {"id": table["id"], **_columns(encoded)},
        counts={"tokens": sum(len(row.token_ids) for row in encoded if isinstance(row, EncodedExample))},
        dropped=Counter(str(row) for row in encoded if isinstance(row, Dropped)),
    )


def _encode_batch(table: pa.Table, encoder: ByteEncoder) -> list[EncodedExample | Dropped]:
    """A corpus holds texts or conversations throughout, so a batch does."""
    conversations = table["messages"].to_pylist()
    if conversations and conversations[0] is not None:
        return encoder.encode_conversations([json.loads(conversation) for conversation in conversations])
    return encoder.encode(table["text"].to_pylist())


def _columns(encoded: list[EncodedExample | Dropped]) -> dict[str, Any]:
    nothing = EncodedExample(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint8))
    rows = [row if isinstance(row, EncodedExample) else nothing for row in encoded]
    return {
        "token_ids": join_rows([row.token_ids for row in rows], pa.int32()),
        "byte_lengths": join_rows([row.byte_lengths for row in rows], pa.int32()),
        "kinds": join_rows([row.kinds for row in rows], pa.uint8()),
        "dropped": pa.array([str(row) if isinstance(row, Dropped) else None for row in encoded], pa.string()),
    }
