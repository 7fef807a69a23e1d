"""The stage EXAMPLES → TOKENS: one dataset a tokenizer."""

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import pyarrow as pa

from alm_pipeline.corpus.conversation import Conversation
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import track
from alm_pipeline.runtime.threads import in_background, threads_at_once
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.kitoken import KitokenEngine
from alm_pipeline.tokenization.engines.proof import first_difference
from alm_pipeline.tokenization.engines.registry import machine_findings
from alm_pipeline.tokenization.engines.standard import Engine, one_thread_a_call
from alm_pipeline.tokenization.rows import EncodedBatch
from alm_pipeline.vocabulary.byte_view import check_vocabulary
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.schemas import Kind

STAGE_VERSION = 4
_EXAMPLES_A_PART = 64
_SHARDS_WORTH_A_PROOF = 3
_MOST_PARTS_AT_ONCE = 16
_QUESTION = "whether kitoken encodes a dataset's first shard as tokenizers does"

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def tokens_dataset(examples: Dataset, tokenizer: LoadedTokenizer, max_tokens: int | None) -> Dataset:
    """The tokens of these examples by a tokenizer, whether or not they are written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "examples": examples.name,
        "tokenizer": tokenizer.identity,
        "max_tokens": max_tokens,
    }
    return Dataset(examples.root, Kind.TOKENS, f"{examples.label}-{tokenizer.label}", identity)


def tokenize(
    examples: Dataset,
    tokens: Dataset,
    tokenizer: LoadedTokenizer,
    max_tokens: int | None,
    shards: Sequence[int] | None = None,
    embedding_rows: int | None = None,
) -> Manifest | None:
    """Encode every shard of the examples that is not encoded yet.

    With `shards`, these alone, so that several processes share a dataset's: then the last call is one without, which
    finds all of them there and writes the manifest. Returns None where there is none yet.

    Where kitoken is installed, it encodes the shards after the first: once it gave the same ids as `tokenizers` on a
    set of adversarial texts and on the first shard, or, of `shards`, on the first that this process encodes of the
    dataset; what a process of this machine found is kept for the others. Otherwise one warning says why it does not.

    Raises UserError when the tokenizer has ids beyond `embedding_rows`, its model's, or a shard is not the examples'.
    """
    if manifest := tokens.manifest():
        return manifest
    if tokens.identity["tokenizer"] != tokenizer.identity:
        raise UserError(
            f"{tokenizer.name}: has other files here than where {tokens.name} was asked for: give all machines the same"
        )
    sizes = [record.counts["text_bytes"] for record in examples.complete_manifest().shards]
    chosen = range(len(sizes)) if shards is None else shards
    if other := [shard for shard in chosen if not 0 <= shard < len(sizes)]:
        raise UserError(f"{examples.url}: has {len(sizes)} shards, and no shard {other[0]}: ask for those that it has")
    if missing := tokens.missing(chosen):
        encoding = _Encoding() if shards is None else _shared_encoding(tokens.name)
        encoder = encoding.encoder or ByteEncoder(tokenizer, max_tokens)
        if embedding_rows is not None:
            check_vocabulary(encoder.view, embedding_rows, tokenizer.name)
        # the proof costs a shard's time with the fast engine; who encodes some shards will encode others, too
        worth = len(sizes) >= _SHARDS_WORTH_A_PROOF and (shards is not None or len(missing) > 1 or missing[0] > 0)
        proof = chosen[0] if worth and not encoding.encoder else None
        with _encoding_shards(examples, tokens, encoder, {shard: sizes[shard] for shard in chosen}, missing) as run:
            if proof is not None:
                _choose_engine(examples, tokens, encoder, proof, run)
            encoding.encoder = encoder
            run(tokens.missing(missing))
    if shards is not None:
        return None
    _shared_encoding.cache_clear()
    return tokens.finish(len(sizes))


def _choose_engine(
    examples: Dataset, tokens: Dataset, encoder: ByteEncoder, proof: int, run: Callable[[Sequence[int]], None]
) -> None:
    """By the shard `proof`, encoded first unless it is known what that says."""
    if not machine_findings().recall(_QUESTION, tokens.name):
        run(tokens.missing([proof]))
    encoder.engine = _fast_if_proven(encoder, examples, tokens, proof)


@dataclass
class _Encoding:
    encoder: ByteEncoder | None = None
    """None until its engine is chosen: to prove one, special tokens' literals are read in both ways"""


@lru_cache(maxsize=2)
def _shared_encoding(tokens: str) -> _Encoding:
    """Of the dataset of that name, for all groups of shards that this process encodes, also at once."""
    return _Encoding()


@contextmanager
def _encoding_shards(
    examples: Dataset, tokens: Dataset, encoder: ByteEncoder, sizes: Mapping[int, int], missing: Sequence[int]
) -> Iterator[Callable[[Sequence[int]], None]]:
    """What encodes shards and shows how far it is; `sizes` in bytes are of all shards that are asked for."""
    total = sum(sizes.values())
    done = total - sum(sizes[shard] for shard in missing)
    with one_thread_a_call(), track(f"tokenize {tokens.label}", total, "B", done) as advance:
        yield partial(_tokenize_shards, examples, tokens, encoder, lambda shard: advance(sizes[shard]))


def _tokenize_shards(
    examples: Dataset, tokens: Dataset, encoder: ByteEncoder, advance: Callable[[int], None], shards: Sequence[int]
) -> None:
    with in_background(partial(_write_shard, tokens)) as write:
        batches: list[EncodedBatch] = []
        for part, batch in _encoded(_parts(examples, shards), encoder):
            batches.append(batch)
            if part.last:
                write(part.shard, part.ids, batches)
                advance(part.shard)
                batches = []


@dataclass(frozen=True)
class _Part:
    """Some of a shard's examples, one after the other."""

    shard: int
    last: bool
    ids: pa.ChunkedArray
    """of the whole shard"""
    texts: list[str]
    conversations: list[Conversation] | None
    """instead of the texts"""


def _parts(examples: Dataset, shards: Iterable[int]) -> Iterator[_Part]:
    for shard in shards:
        table = examples.read_shard(shard, ["id", "text", "messages"])
        # an empty shard is one empty part
        for start in range(0, max(1, table.num_rows), _EXAMPLES_A_PART):
            part = table.slice(start, _EXAMPLES_A_PART)
            last = start + _EXAMPLES_A_PART >= table.num_rows
            yield _Part(shard, last, table["id"], part["text"].to_pylist(), _conversations(part["messages"]))


def _conversations(messages: pa.ChunkedArray) -> list[Conversation] | None:
    """A corpus holds texts or conversations throughout, so a part does."""
    if not len(messages) or not messages[0].is_valid:
        return None
    return [json.loads(conversation) for conversation in messages.to_pylist()]


def _encoded(parts: Iterable[_Part], encoder: ByteEncoder) -> Iterator[tuple[_Part, EncodedBatch]]:
    """The parts with their tokens, in order."""

    def encode(part: _Part) -> tuple[_Part, EncodedBatch]:
        if part.conversations is not None:
            return part, encoder.encode_conversations(part.conversations)
        return part, encoder.encode(part.texts)

    return _ahead(encode, parts)


def _ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The function's results in order; a thread for each core works on the next ones while the caller uses one."""
    at_once = min(threads_at_once(), _MOST_PARTS_AT_ONCE)
    with ThreadPoolExecutor(at_once) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_shard(tokens: Dataset, shard: int, ids: pa.ChunkedArray, batches: Sequence[EncodedBatch]) -> None:
    batch = EncodedBatch.join(batches)
    dropped = Counter(reason for reason in batch.dropped if reason)
    tokens.write_shard(shard, {"id": ids, **batch.columns()}, {"tokens": len(batch.token_ids)}, dropped)


def _fast_if_proven(encoder: ByteEncoder, examples: Dataset, tokens: Dataset, shard: int) -> Engine:
    """The fast engine where it is installed and gives the ids of this shard, otherwise the encoder's own."""
    findings = machine_findings()
    known = findings.recall(_QUESTION, tokens.name) or {}
    difference = known.get("difference")
    try:
        if not difference:
            encoder.engine = KitokenEngine(encoder.tokenizer.encoding_backend, encoder.view, encoder.standard, findings)
        if not known:
            difference = _difference(encoder, examples, tokens, shard)
            findings.record(_QUESTION, tokens.name, {"difference": difference})
    except ImportError:
        return encoder.standard
    except ValueError as error:
        difference = str(error)
    if difference:
        _log.warning("%s: encoded with the standard engine, since %s", tokens.label, difference)
        return encoder.standard
    return encoder.engine


def _difference(encoder: ByteEncoder, examples: Dataset, tokens: Dataset, shard: int) -> str | None:
    """What the encoder's engine gives other ids for than `tokenizers`."""
    for special_literals in (False, True):
        text = first_difference(encoder.engine, encoder.standard, special_literals=special_literals)
        if text is not None:
            return f"{encoder.engine.name} gives other ids for {text[:80]!r}"
    batch = EncodedBatch.join([batch for _, batch in _encoded(_parts(examples, [shard]), encoder)])
    same = tokens.read_shard(shard, ["token_ids"])["token_ids"].combine_chunks().equals(batch.columns()["token_ids"])
    return None if same else f"{encoder.engine.name} gives other ids for shard {shard}"
