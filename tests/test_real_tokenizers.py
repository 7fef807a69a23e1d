"""All pairs of real tokenizers: the dropped texts are the expected ones, and all others are aligned exactly.

The ends of the chunks are compared with ends that are computed here in another way: as sets of byte positions, from the
tokens' spellings.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from alm_pipeline.alignment.chunks import AssistantTurns, ShardChunks, ShardTokens, align
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS, long_text, random_texts
from alm_pipeline.tokenization.engines.fastokens import FastokensEngine
from alm_pipeline.tokenization.engines.proof import first_difference
from alm_pipeline.tokenization.rows import EncodedBatch
from tests.real_tokenizers import REAL_TOKENIZERS, require

TEXTS = (*ADVERSARIAL_TEXTS, *random_texts(2, 150))
# bytes of UTF-8 that SmolLM2's vocabulary lacks
NOT_IN_SMOLLM2 = frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")
# without the characters for which a tokenizer drops a text
LONG = unicodedata.normalize("NFC", re.sub("[\u2581\x04\x06\x13\x14\x16\x1d]", "", long_text()))
WHOLE = ("gpt2", "llama3", "gemma3")
"""one tokenizer of each kind reads all of the long text, a million characters; the others a seventh of it"""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One tokenizer's tokens of some texts."""

    tokens: ShardTokens
    dropped: Sequence[str | None]
    sizes: Ints
    """size of each text in bytes"""
    ends: Ints
    """the ends of tokens, from their spellings alone: bytes from the start of the first text, in order"""

    def ends_of(self, rows: npt.NDArray[np.bool_]) -> Ints:
        """Return the ends in these texts."""
        return self.ends[rows[np.searchsorted(np.cumsum(self.sizes), self.ends)]]


@dataclass(frozen=True)
class Sides:
    """The tokens of the texts, and of the long one, by a tokenizer and by its byte-level conversion."""

    own: Side
    own_long: Side
    converted: Side
    converted_long: Side
    control: dict[str, bool]
    """the conversion's control tokens, and whether they are special"""
    special: list[str]
    """the source's special tokens"""
    differs: str | None
    """an adversarial or random text for which the fast engine gives other ids, or why there is none; None if exact"""


@cache
def sides(name: str) -> Sides:
    """Encode the texts once, and don't keep the tokenizer: thirteen of them take gigabytes."""
    tokenizer = require(name)
    conversion = byte_level_tokenizer(tokenizer)
    encoder, texts = ByteEncoder(LoadedTokenizer.of(tokenizer)), (*TEXTS, LONG if name in WHOLE else LONG[:150_000])
    own, converted = encode(encoder, texts), encode(ByteEncoder(LoadedTokenizer.of(conversion)), texts)
    control = {token.content: token.special for token in conversion.added_tokens_decoder.values()}
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return Sides(*own, *converted, control, special, first_difference_of(encoder))


def first_difference_of(encoder: ByteEncoder) -> str | None:
    try:
        fast = FastokensEngine(encoder.tokenizer.encoding_backend, encoder.view, encoder.standard)
    except ValueError as error:
        return str(error)
    found = (
        first_difference(fast, encoder.standard, special_literals=literals, texts=TEXTS) for literals in (False, True)
    )
    return next(filter(None, found), None)


def encode(encoder: ByteEncoder, texts: Sequence[str]) -> tuple[Side, Side]:
    """Encode all texts except the last, and the last."""
    return side(encoder, texts[:-1]), side(encoder, texts[-1:])


def side(encoder: ByteEncoder, texts: Sequence[str]) -> Side:
    batch, spelling = encoder.encode(texts), encoder.view.spelling
    lengths = np.fromiter(map(len, spelling), np.int64, len(spelling))
    contents = [text.encode() for text in texts]
    sizes = np.array([len(content) for content in contents])
    rows = zip(contents, np.cumsum(sizes) - sizes, np.split(batch.token_ids, batch.offsets[1:-1]), strict=True)
    ends = []
    for content, start, ids in rows:
        own = ids[~encoder.view.special[ids]]
        spelled = b"".join([spelling[id_] for id_ in own.tolist()])
        prefix = len(spelled) - len(content) if len(own) else 0
        assert spelled == b" " * prefix + content or not len(own)
        relative = np.cumsum(lengths[own]) - prefix
        ends.append(start + relative[relative > 0])
    joined = np.concatenate(ends)
    return Side(shard_tokens(batch), batch.dropped, sizes, joined[np.diff(joined, prepend=0) > 0])


def shard_tokens(batch: EncodedBatch) -> ShardTokens:
    assert not batch.uncovered
    none = np.zeros(0, np.int32)
    return ShardTokens(
        offsets=batch.offsets,
        byte_lengths=batch.byte_lengths,
        kinds=batch.kinds,
        turns=batch.turns,
        uncovered_offsets=np.zeros(len(batch) + 1, np.int64),
        uncovered_at=none,
        uncovered_bytes=none,
        dropped=np.array([reason is not None for reason in batch.dropped]),
    )


def aligned(teacher: Side, student: Side) -> ShardChunks:
    no_turns = AssistantTurns(np.zeros(len(teacher.dropped) + 1, np.int64), np.zeros(0, bool))
    return align(teacher.tokens, student.tokens, no_turns)


def assert_exact(teacher: Side, student: Side) -> None:
    """Assert that chunks end exactly where tokens of both sides end, and contain all bytes and tokens."""
    chunks = aligned(teacher, student)
    kept = ~(teacher.tokens.dropped | student.tokens.dropped)
    expected = np.intersect1d(teacher.ends_of(kept), student.ends_of(kept), assume_unique=True)
    starts = np.cumsum(teacher.sizes) - teacher.sizes
    lengths = chunks.byte_lengths
    covered = totals(lengths, chunks.offsets)
    assert np.array_equal(covered, np.where(kept, teacher.sizes, 0))
    moved = np.repeat(starts - (np.cumsum(covered) - covered), np.diff(chunks.offsets))
    assert np.array_equal((np.cumsum(lengths) + moved)[lengths > 0], expected)
    for tokens, counts in ((teacher.tokens, chunks.teacher_tokens), (student.tokens, chunks.student_tokens)):
        assert np.array_equal(totals(counts, chunks.offsets), np.where(kept, np.diff(tokens.offsets), 0))


def totals(values: npt.NDArray[np.int32], offsets: Ints) -> Ints:
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return sums[offsets[1:]] - sums[offsets[:-1]]


@pytest.mark.parametrize("student", REAL_TOKENIZERS)
@pytest.mark.parametrize("teacher", REAL_TOKENIZERS)
def test_every_byte_of_every_pair(teacher: str, student: str) -> None:
    assert_exact(sides(teacher).own, sides(student).own)


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_every_byte_with_its_own_conversion(name: str) -> None:
    own, converted = sides(name).own, sides(name).converted
    assert_exact(own, converted)
    assert_exact(converted, own)


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_a_long_text(name: str) -> None:
    own, converted = sides(name).own_long, sides(name).converted_long
    assert own.dropped == converted.dropped == [None]
    assert_exact(own, converted)


def expected_reason(name: str, text: str) -> str | None:
    """Return why a text is dropped."""
    if name in ("gemma2", "gemma3", "mistral_7b") and "\u2581" in text:
        return "holds_the_space_stand_in"
    if name in ("qwen2_5", "qwen3") and not unicodedata.is_normalized("NFC", text):
        return "changed_by_nfc"
    if name == "smollm2" and NOT_IN_SMOLLM2 & set(text.encode()):
        return "tokens_spell_other_bytes"
    return None


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_the_dropped_texts(name: str) -> None:
    found = {text: reason for text, reason in zip(TEXTS, sides(name).own.dropped, strict=True) if reason}
    assert found == {text: reason for text in TEXTS if (reason := expected_reason(name, text))}
    assert sides(name).converted.dropped == [None] * len(TEXTS)


TOOLS = {"<tool_call>", "</tool_call>"}
UNFLAGGED = {
    "qwen2_5": TOOLS,
    "qwen3": TOOLS | {"<tool_response>", "</tool_response>", "<think>", "</think>"},
    "deepseek_v3": {"<｜User｜>", "<｜Assistant｜>", "<｜tool▁sep｜>"}
    | {f"<｜tool▁{what}▁{edge}｜>" for what in ("calls", "call", "outputs", "output") for edge in ("begin", "end")},
}


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_control_tokens_of_the_conversion(name: str) -> None:
    control = sides(name).control
    assert {literal for literal, special in control.items() if not special} == UNFLAGGED.get(name, set())
    assert control.items() >= dict.fromkeys(sides(name).special, True).items()
    assert len(control) == len(sides(name).special) + len(UNFLAGGED.get(name, set()))


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_the_fast_engine_is_exact(name: str) -> None:
    """It does not read GPT-4o's, whose ids have gaps."""
    differs = sides(name).differs
    assert differs is None if name != "gpt4o" else "fastokens can't read the tokenizer" in str(differs)
