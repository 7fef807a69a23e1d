"""The stage EXAMPLES → TOKENS: one dataset for each tokenizer."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from alm_pipeline.conversations.sections import Conversation, first_section
from alm_pipeline.corpus.formats.tools import Arguments, stored_arguments
from alm_pipeline.corpus.stage import learns_completions
from alm_pipeline.models.loaded_files import check_same
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import track
from alm_pipeline.runtime.threads import in_background, meanwhile, results_ahead, threads_at_once
from alm_pipeline.tokenization.chat.template import TemplateRefused
from alm_pipeline.tokenization.completions import with_completions, with_learned_turns
from alm_pipeline.tokenization.encoder import ByteEncoder, Dropped, load_spelling_kernel
from alm_pipeline.tokenization.engines.choice import Trial
from alm_pipeline.tokenization.engines.proof import DifferentIds, difference
from alm_pipeline.tokenization.engines.standard import Engine, single_threaded_calls
from alm_pipeline.tokenization.prepared_encoders import Encoders
from alm_pipeline.tokenization.rows import UNREAD_ARGUMENT, EncodedBatch
from alm_pipeline.tokenization.templates.choice import rendered_template
from alm_pipeline.tokenization.templates.syntax import names_read
from alm_pipeline.tokenization.written import WrittenEnds, encode_written
from storage.dataset import Dataset, Manifest, ShardRecord
from storage.errors import UserError
from storage.printed.inert import one_line
from storage.schemas import Kind

STAGE_VERSION = 5
_EXAMPLES_PER_SLICE = 64
_SHARDS_WORTH_A_TRIAL = 3
_BYTES_WORTH_A_TRIAL = 130
"""of text, for each token of the vocabulary and thread: `tokenizers` encodes them in the time that a trial takes"""
_BYTES_WORTH_A_PROVEN_ENGINE = 60
"""the same where this machine knows an engine to be exact, and need only make it"""
_TIMED_CHARACTERS = 2**16
_ROWS_PER_SAMPLED = 128
"""The standard engine is up to 50 times slower: a larger sample would take as long as all the rest."""
_SAMPLE_SHIFT = 37
"""rows by which the sample moves from shard to shard"""

_log = logging.getLogger(__name__)


def tokens_dataset(
    examples: Dataset, tokenizer: LoadedTokenizer, max_tokens: int | None, embedding_rows: int | None = None
) -> Dataset:
    """Return the dataset of these examples' tokens by a tokenizer, which need not be written yet.

    `embedding_rows` are those of the model that reads the tokens (None: every token has one).
    """
    identity: dict[str, Any] = {
        "stage_version": STAGE_VERSION,
        "examples": examples.name,
        "tokenizer": tokenizer.identity,
        "max_tokens": max_tokens,
    }
    if embedding_rows is not None and tokenizer.highest_id >= embedding_rows:
        identity["embedding_rows"] = embedding_rows
    if tokenizer.spells_special:  # tokens of other tokenizers keep the name that they had before this reason to drop
        identity["special_literals"] = "dropped"
    return Dataset(examples.root, Kind.TOKENS, f"{examples.label}-{tokenizer.label}", identity)


def tokenize(
    examples: Dataset,
    tokens: Dataset,
    tokenizer: LoadedTokenizer,
    max_tokens: int | None,
    shards: Sequence[int] | None = None,
    embedding_rows: int | None = None,
    encoders: Encoders | None = None,
    title: str = "tokenize",
) -> Manifest | None:
    """Encode every shard of the examples that is not encoded yet, and write the manifest.

    With `shards`, only these are encoded, so that several processes can share the work. No manifest is written then,
    and None is returned; a last call without `shards` writes it. Calls with the same `encoders` share the encoder.
    Progress is shown under `title`.

    The fastest engine that is proven to give the same ids as `tokenizers` encodes the shards after the first: for
    adversarial texts, for the tokens' own texts and for the first of the shards. The outcome is recorded for the other
    processes of this machine, and logged. Some texts of every later shard are encoded with `tokenizers`, too. If any of
    them differs, a warning names it, and `tokenizers` encodes this shard and the later ones. It encodes all shards of a
    corpus that is too small for a trial to pay.

    Examples that need a token beyond `embedding_rows`, the rows of the model's embedding, are dropped. Raises UserError
    if many of the tokenizer's ordinary tokens are, if its template refuses every conversation or shows nothing of those
    of a shard, or if the examples do not have one of the shards.
    """
    if manifest := tokens.manifest():
        return manifest
    sizes = [record.counts["text_bytes"] for record in examples.complete_manifest().shards]
    chosen = range(len(sizes)) if shards is None else shards
    if other := [shard for shard in chosen if not 0 <= shard < len(sizes)]:
        raise UserError(f"{examples.url}: has {len(sizes)} shards, and no shard {other[0]}: ask for one that it has")
    encoders = encoders or Encoders()
    if missing := tokens.missing(chosen):
        # a process that encodes some shards will encode others too
        goes_on = shards is not None or len(missing) > 1 or missing[0] > 0
        with _encoding(examples, tokens, {shard: sizes[shard] for shard in chosen}, missing, title) as encode:
            with encoders.preparing(tokens.name):
                encoder = encoders.prepared(tokens.name)
                if encoder is None:
                    encoder = _made_encoder(tokens, tokenizer, max_tokens, embedding_rows)
                    if goes_on and _is_worth_a_trial(sizes, tokenizer, encoders):
                        encoder = _with_best_engine(encoder, encoders, examples, tokens, chosen[0], encode)
                    encoders.keep(tokens.name, encoder)
                    missing = tokens.missing(missing)  # a trial takes a while, and writes a shard
            _encode_all(encoder, encoders, tokens, encode, missing)
        encoder.tokenizer.check_unchanged()
    tokenizer.check_unchanged()
    if shards is not None:
        return None
    encoders.drop(tokens.name)
    records = tokens.required_records(range(len(sizes)))
    _check_template(examples, records, tokenizer)
    return tokens.publish_manifest(records)


def _made_encoder(
    tokens: Dataset, tokenizer: LoadedTokenizer, max_tokens: int | None, embedding_rows: int | None
) -> ByteEncoder:
    """Return an encoder with the standard engine."""
    # not earlier: a process that has an encoder need not load the tokenizer for every group of shards
    check_same(tokenizer.name, tokenizer.identity, tokens.identity["tokenizer"], tokens.name)
    with meanwhile(load_spelling_kernel):
        return ByteEncoder(tokenizer, max_tokens, embedding_rows)


def _encode_all(
    encoder: ByteEncoder,
    encoders: Encoders,
    tokens: Dataset,
    encode: Callable[[ByteEncoder, Sequence[int]], None],
    shards: Sequence[int],
) -> None:
    """Encode these shards; with the standard engine from the first difference on."""
    try:
        encode(encoder, shards)
    except DifferentIds as error:
        encoder = _with_standard_engine(encoder, encoders, tokens, error)
        encode(encoder, tokens.missing(shards))


def _is_worth_a_trial(sizes: Sequence[int], tokenizer: LoadedTokenizer, encoders: Encoders) -> bool:
    """Return whether shards of these bytes are encoded sooner after the trial of a fast engine than without one."""
    is_proven = encoders.has_proven_engine(tokenizer.identity)
    least = _BYTES_WORTH_A_PROVEN_ENGINE if is_proven else _BYTES_WORTH_A_TRIAL
    return len(sizes) >= _SHARDS_WORTH_A_TRIAL and sum(sizes) >= least * tokenizer.view.size * threads_at_once()


def _check_template(examples: Dataset, records: Sequence[ShardRecord], tokenizer: LoadedTokenizer) -> None:
    """Raise UserError, with the template's own sentence, if the template refused every conversation.

    `records` are those of all shards of the tokens.
    """
    rows = sum(record.rows for record in records)
    if not rows or sum(record.dropped.get(Dropped.TEMPLATE_REFUSES, 0) for record in records) < rows:
        return
    shard = next(shard for shard, record in enumerate(records) if record.rows)
    first = next(_slices(examples, [shard]))
    try:
        tokenizer.template.render((first.conversations or [])[0], first.arguments[0] if first.arguments else None)
    except TemplateRefused as error:
        raise UserError(
            f"{error}; it refuses all {rows} conversations of {examples.url}: fix the template, or use a corpus whose "
            "roles it takes"
        ) from error


def _with_best_engine(
    encoder: ByteEncoder,
    encoders: Encoders,
    examples: Dataset,
    tokens: Dataset,
    shard: int,
    encode: Callable[[ByteEncoder, Sequence[int]], None],
) -> ByteEncoder:
    """Return the encoder with the chosen engine. For a trial, the standard engine encodes the shard first."""

    def agrees(engine: Engine) -> bool:
        encode(encoder, tokens.missing([shard]))
        return _encodes_as_written(encoder.with_engine(engine), examples, tokens, shard)

    sample = partial(_first_texts, examples, shard)
    choice = encoders.choose(encoder, Trial(encoder.tokenizer.identity, tokens.name, f"shard {shard}", agrees, sample))
    _log.log(logging.WARNING if choice.differs else logging.INFO, "%s: %s", tokens.label, choice)
    return encoder.with_engine(choice.engine)


def _with_standard_engine(
    encoder: ByteEncoder, encoders: Encoders, tokens: Dataset, error: DifferentIds
) -> ByteEncoder:
    """Return the encoder with the standard engine, and warn that its engine is not exact."""
    _log.warning(
        "%s: %s; tokenizers encodes this shard and later ones. The sampled texts of earlier shards did not differ; to "
        "encode all texts of those again, delete %s",
        tokens.label,
        error,
        tokens.url,
    )
    return encoders.refute(tokens.name, encoder, str(error))


def _first_texts(examples: Dataset, shard: int) -> list[str]:
    """Return the first texts of a shard, enough to time an engine on."""
    texts: list[str] = []
    for part in _slices(examples, [shard]):
        texts += part.texts
        if sum(map(len, texts)) >= _TIMED_CHARACTERS:
            break
    return texts


def _encodes_as_written(encoder: ByteEncoder, examples: Dataset, tokens: Dataset, shard: int) -> bool:
    """Return whether the encoder gives the ids that are written for a shard."""
    slices = _slices(examples, [shard], own_ids=is_written_in(examples, encoder.tokenizer))
    batch = EncodedBatch.join([batch for _, batch in _encoded(slices, encoder)])
    written = tokens.read_shard(shard, ["token_ids"])["token_ids"].combine_chunks()
    return bool(written.equals(batch.columns()["token_ids"]))


@contextmanager
def _encoding(
    examples: Dataset, tokens: Dataset, sizes: Mapping[int, int], missing: Sequence[int], title: str
) -> Iterator[Callable[[ByteEncoder, Sequence[int]], None]]:
    """Yield the function that encodes shards and reports progress. `sizes` holds the bytes of all requested shards."""
    total = sum(sizes.values())
    done = total - sum(sizes[shard] for shard in missing)
    with single_threaded_calls(), track(title, total, "B", done) as advance:
        yield partial(_tokenize_shards, examples, tokens, lambda shard: advance(sizes[shard]))


def _tokenize_shards(
    examples: Dataset, tokens: Dataset, advance: Callable[[int], None], encoder: ByteEncoder, shards: Sequence[int]
) -> None:
    with in_background(partial(_write_shard, tokens)) as write:
        encoded: list[tuple[_ExampleSlice, EncodedBatch]] = []
        slices = _slices(examples, shards, own_ids=is_written_in(examples, encoder.tokenizer))
        for part, batch in _encoded(slices, encoder, samples=True):
            encoded.append((part, batch))
            if part.last:
                _require_shown(encoded, examples, encoder.tokenizer.name)
                unread = _unread_arguments(encoded, encoder.tokenizer)
                write(part.shard, part.ids, [batch for _, batch in encoded], unread)
                advance(part.shard)
                encoded = []


@dataclass(frozen=True)
class _ExampleSlice:
    """Consecutive examples of a shard."""

    shard: int
    last: bool
    """whether it is the shard's last slice"""
    ids: pa.ChunkedArray
    """of all examples of the shard"""
    texts: list[str]
    conversations: list[Conversation] | None
    """None for a corpus of texts"""
    completions: list[int] | None
    """where completions begin, of prompts with completions"""
    arguments: list[Arguments | None] | None
    """what each conversation's template gets beside the messages; None if that is nothing"""
    written: WrittenEnds | None
    """how texts end that a model wrote; None for any others"""
    sample: range
    """the examples that are compared with the standard engine's ids"""

    def sampled(self) -> "_ExampleSlice":
        """Return the slice of the sample alone."""
        lists = {name: getattr(self, name) for name in ("texts", "conversations", "completions", "arguments")}
        sample = slice(self.sample.start, self.sample.stop, self.sample.step)
        written = self.written and self.written.at(sample)
        return replace(self, written=written, **{name: values and values[sample] for name, values in lists.items()})


def _slices(examples: Dataset, shards: Iterable[int], *, own_ids: bool = False) -> Iterator[_ExampleSlice]:
    """Yield the examples of these shards; with `own_ids`, those that a model wrote have its tokens."""
    has_completions = learns_completions(examples)
    for shard in shards:
        table = examples.read_shard(shard)
        # an empty shard has one empty slice
        for start in range(0, max(1, table.num_rows), _EXAMPLES_PER_SLICE):
            part = table.slice(start, _EXAMPLES_PER_SLICE)
            last = start + _EXAMPLES_PER_SLICE >= table.num_rows
            texts, conversations = part["text"].to_pylist(), _conversations(part["messages"])
            completions = part["completion_at"].to_pylist() if has_completions else None
            sample = _sample(shard, table.num_rows, start, part.num_rows)
            beside = completions, _arguments(part), _written_ends(part, with_ids=own_ids)
            yield _ExampleSlice(shard, last, table["id"], texts, conversations, *beside, sample)


def _sample(shard: int, rows: int, start: int, size: int) -> range:
    """Return those of `size` rows from `start` on that are in a shard's sample: at least one row of each shard."""
    period = max(1, min(_ROWS_PER_SAMPLED, rows))
    return range((shard * _SAMPLE_SHIFT - start) % period, size, period)


def _conversations(messages: pa.ChunkedArray) -> list[Conversation] | None:
    """Parse the conversations; None for texts. A corpus never mixes the two."""
    if not len(messages) or not messages[0].is_valid:
        return None
    return [json.loads(conversation) for conversation in messages.to_pylist()]


def _written_ends(examples: pa.Table, *, with_ids: bool) -> WrittenEnds | None:
    """Return how examples end that a model wrote; None for others."""
    if "finish_reason" not in examples.column_names:
        return None
    ids = examples["written_ids"].to_pylist() if with_ids else None
    return WrittenEnds(examples["finish_reason"].to_pylist(), ids)


def is_written_in(examples: Dataset, tokenizer: LoadedTokenizer) -> bool:
    """Return whether a model with this tokenizer wrote the examples, so that they have its own tokens."""
    writer = examples.identity.get("writer")
    return isinstance(writer, dict) and writer.get("tokenizer") == tokenizer.identity


def _arguments(examples: pa.Table) -> list[Arguments | None] | None:
    """Parse the template arguments of conversations; None where the dataset has none."""
    if "template_arguments" not in examples.column_names:
        return None
    return [stored_arguments(text) for text in examples["template_arguments"].to_pylist()]


def _encoded(
    slices: Iterable[_ExampleSlice], encoder: ByteEncoder, *, samples: bool = False
) -> Iterator[tuple[_ExampleSlice, EncodedBatch]]:
    """Yield the slices with their tokens, in order.

    With `samples`, the standard engine encodes a sample, too. Raises DifferentIds if ids differ.
    """

    def encode(part: _ExampleSlice) -> tuple[_ExampleSlice, EncodedBatch]:
        try:
            batch = _encoded_slice(part, encoder)
            if samples and encoder.engine is not encoder.standard:
                _check_sample(part, batch, encoder)
        except DifferentIds as error:
            raise DifferentIds(f"{error} in shard {part.shard}") from error
        return part, batch

    return results_ahead(encode, slices)


def _encoded_slice(part: _ExampleSlice, encoder: ByteEncoder) -> EncodedBatch:
    if part.written is not None:
        completions = part.completions or []
        return encode_written(encoder, part.written, completions, part.texts, part.conversations, part.arguments)
    if part.conversations is not None:
        batch = encoder.encode_conversations(part.conversations, part.arguments)
        if part.completions is None:
            return batch
        rows = zip(part.conversations, part.completions, strict=True)
        return with_learned_turns(batch, [first_section(*row) for row in rows])
    batch = encoder.encode(part.texts)
    return batch if part.completions is None else with_completions(batch, part.completions)


def _check_sample(part: _ExampleSlice, batch: EncodedBatch, encoder: ByteEncoder) -> None:
    """Raise DifferentIds if the standard engine encodes an example of the sample differently."""
    if not part.sample:
        return
    expected = _encoded_slice(part.sampled(), encoder.with_engine(encoder.standard))
    for index, row in enumerate(part.sample):
        if not np.array_equal(batch.row_ids(row), expected.row_ids(index)):
            raise DifferentIds(difference(encoder.engine, part.texts[row]))


def _require_shown(encoded: Sequence[tuple[_ExampleSlice, EncodedBatch]], examples: Dataset, tokenizer: str) -> None:
    """Raise UserError if the template shows no byte of a shard's conversations, though they are not blank."""
    if any(part.conversations is None or batch.byte_lengths.any() for part, batch in encoded):
        return
    hidden = [
        conversation
        for part, batch in encoded
        for conversation, text, reason in zip(part.conversations or [], part.texts, batch.dropped, strict=True)
        if reason is None and text.strip()
    ]
    if hidden:
        roles = ", ".join(sorted({one_line(message["role"]) for conversation in hidden for message in conversation}))
        raise UserError(
            f"{tokenizer}: its chat template shows no message of {examples.shard_url(encoded[0][0].shard)} "
            f"({len(hidden):,} conversations, of the roles {roles}): give this side a template that shows them "
            "(teacher_template, or student.template), or rename the roles in the corpus"
        )


def _unread_arguments(
    encoded: Sequence[tuple[_ExampleSlice, EncodedBatch]], tokenizer: LoadedTokenizer
) -> Counter[str]:
    """Count the conversations with each argument (`tools`, …) that the template does not read, under its name."""
    given = [
        arguments
        for part, batch in encoded
        for arguments, reason in zip(part.arguments or (), batch.dropped, strict=bool(part.arguments))
        if reason is None and arguments
    ]
    templates = tokenizer.template_without_arguments if given else None
    return Counter(
        f"{UNREAD_ARGUMENT}{name}"
        for arguments in given
        if (source := rendered_template(templates, arguments)) is not None
        for name in arguments.keys() - names_read(source)
    )


def _write_shard(
    tokens: Dataset,
    shard: int,
    ids: pa.ChunkedArray,
    batches: Sequence[EncodedBatch],
    unread: Mapping[str, int],
) -> None:
    batch = EncodedBatch.join(batches)
    dropped = Counter(reason for reason in batch.dropped if reason)
    tokens.write_shard(shard, {"id": ids, **batch.columns()}, {"tokens": len(batch.token_ids), **unread}, dropped)
