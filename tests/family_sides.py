"""What each family's template and tokenizer make of all kinds of conversation, and of any two families their chunks.

Everything that the tests compare the pipeline with is computed here in another way, from the definitions: the text that
both sides share from the messages, what a template shows from two of its renderings, the chunks from sets of bytes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cache, cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers.utils import chat_template_utils

from alm_pipeline.alignment.chunks import ShardChunks, ShardTokens, align
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.shards import AlignedShard, align_tables, shard_tokens
from alm_pipeline.alignment.visibility import Visibility
from alm_pipeline.corpus.formats.messages import openai_messages
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.rows import EncodedBatch, EncodedExample
from storage.schemas import ChunkKind, TokenKind
from tests.conversation_kinds import KINDS, REFUSED, Message
from tests.families import FAMILIES, family_tokenizer, messages_for

Bytes = npt.NDArray[np.bool_]
"""[bytes] of the shared texts of all conversations, concatenated: a question about each byte"""
Ints = npt.NDArray[np.int64]
LEARNED = ("assistant", "tool_calls", "reasoning")


class FixedDate(datetime):
    """The date that all renderings have."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(2024, 7, 26, tzinfo=tz)


class Section(NamedTuple):
    """A section of a conversation, with where it begins in bytes of the shared text."""

    role: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text.encode())


@dataclass(frozen=True)
class Conversation:
    """A conversation of some kind, as the corpus reads it."""

    kind: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None

    @property
    def arguments(self) -> dict[str, Any] | None:
        return {"tools": self.tools} if self.tools else None

    @cached_property
    def sections(self) -> list[Section]:
        texts = [(role, text) for message in self.messages for role, text in _message_sections(message)]
        starts = accumulate((len(text.encode()) for _, text in texts), initial=0)
        return [Section(role, text, start) for (role, text), start in zip(texts, starts, strict=False)]

    @cached_property
    def text(self) -> str:
        return "".join(section.text for section in self.sections)


def _message_sections(message: Message) -> Iterator[tuple[str, str]]:
    if message["role"] == "assistant" and (thought := reasoning(message)):
        yield "reasoning", thought
    yield message["role"], message["content"]
    if message["role"] == "assistant" and message.get("tool_calls"):
        yield "tool_calls", "".join(name + "".join(items(arguments)) for name, arguments in call_texts(message))


def reasoning(message: Message) -> str:
    return next((message[key] for key in ("reasoning_content", "reasoning", "thinking") if message.get(key)), "")


def call_texts(message: Message) -> list[tuple[str, str]]:
    """Return the name and the arguments as JSON text of each of a message's calls."""
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return [
        (
            function["name"],
            function["arguments"]
            if isinstance(function["arguments"], str)
            else json.dumps(function["arguments"], ensure_ascii=False),
        )
        for function in functions
    ]


@cache
def conversations() -> tuple[Conversation, ...]:
    """Return all conversations that a corpus can have."""
    rows = [(kind, row) for kind, rows in KINDS.items() if kind not in REFUSED for row in rows]
    return tuple(
        Conversation(kind, openai_messages(json.loads(json.dumps(row.messages))), row.tools) for kind, row in rows
    )


@cache
def sizes() -> Ints:
    """Return the size [conversations] of each shared text in bytes."""
    return np.array([len(conversation.text.encode()) for conversation in conversations()])


@cache
def roles_of_bytes() -> npt.NDArray[np.str_]:
    """Return the role [bytes] of the section that each byte belongs to."""
    sections = [section for conversation in conversations() for section in conversation.sections]
    return np.repeat([section.role for section in sections], [section.end - section.start for section in sections])


@cache
def kinds_of_bytes() -> npt.NDArray[np.str_]:
    return np.repeat([conversation.kind for conversation in conversations()], sizes())


class Unit(NamedTuple):
    """A stretch of a conversation that a template shows as a whole or not at all, with its bytes in the shared text."""

    what: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text.encode())


def units(conversation: Conversation) -> list[Unit]:
    """Return the contents and thoughts without the white space around them, and names, keys, values of calls."""
    found = []
    calls = iter([pair for message in conversation.messages for pair in call_texts(message)])
    for role, text, start in conversation.sections:
        if role != "tool_calls":
            stripped = text.strip()
            lead = len(text[: len(text) - len(text.lstrip())].encode())
            found += [Unit(role, stripped, start + lead)] if stripped else []
            continue
        at = start
        while at < start + len(text.encode()):
            name, arguments = next(calls)
            found.append(Unit("name", name, at))
            at += len(name.encode())
            found += _argument_units(arguments, at)
            at += sum(len(item.encode()) for item in items(arguments))
    return found


_JSON_ITEM = re.compile(r'"((?:\\.|[^"\\])*)"(\s*:)?|-?\d[\d.eE+-]*|true|false|null')


def items(arguments: str) -> list[str]:
    """Return the keys, strings, numbers and words of JSON text: a call's shared text, after its name."""
    return [item[0] if item[1] is None else item[1] for item in _JSON_ITEM.finditer(arguments)]


def _argument_units(arguments: str, start: int) -> list[Unit]:
    """Return all of the arguments' shared text, and in it the keys, numbers and strings without escapes."""
    whole = "".join(items(arguments))
    found = [Unit("arguments", whole, start)] if whole else []
    for item, text in zip(_JSON_ITEM.finditer(arguments), items(arguments), strict=True):
        if text and "\\" not in text and text not in ("true", "false", "null"):
            found.append(Unit("key" if item[2] else "value", text, start))
        start += len(text.encode())
    return found


def other_texts(messages: Sequence[Message]) -> list[Message]:
    """Return the same conversation with other texts in every content, thought and call."""
    others = []
    for index, message in enumerate(messages):
        other = {**message, "content": f"o{index}" if message["content"] else ""}
        for key in ("reasoning_content", "reasoning", "thinking"):
            other |= {key: f"r{index}"} if other.get(key) else {}
        if calls := message.get("tool_calls"):
            other["tool_calls"] = [
                {
                    **call,
                    "function": {"name": f"n{index}", "arguments": _other_arguments(call["function"]["arguments"])},
                }
                for call in calls
            ]
        others.append(other)
    return others


def _other_arguments(arguments: Any) -> Any:
    return '{"k": "v"}' if isinstance(arguments, str) else {"k": "v"}


@dataclass(frozen=True)
class Side:
    """All conversations on one side."""

    name: str
    encoder: ByteEncoder
    batch: EncodedBatch

    @classmethod
    def of(cls, name: str) -> "Side":
        encoder = ByteEncoder(LoadedTokenizer.of(family_tokenizer(name)))
        rows = conversations()
        batch = encoder.encode_conversations([row.messages for row in rows], [row.arguments for row in rows])
        return cls(name, encoder, batch)

    @cached_property
    def kept(self) -> npt.NDArray[np.bool_]:
        return np.array([reason is None for reason in self.batch.dropped])

    @cached_property
    def table(self) -> pa.Table:
        return pa.table(self.batch.columns())

    @cached_property
    def tokens(self) -> ShardTokens:
        return shard_tokens(self.table)

    @cached_property
    def oracles(self) -> list[str | None]:
        """[conversations] what `apply_chat_template` renders in the template's form; None if it refuses."""
        return [self._oracle(row.messages, row.arguments) for row in conversations()]

    @cached_property
    def others(self) -> list[str | None]:
        """[conversations] the same with other texts in every content, thought and call"""
        return [self._oracle(other_texts(row.messages), row.arguments) for row in conversations()]

    def _oracle(self, messages: list[Message], arguments: dict[str, Any] | None) -> str | None:
        fast, form = self.encoder.tokenizer.fast, messages_for(FAMILIES[self.name], messages)
        with patch.object(chat_template_utils, "datetime", FixedDate):
            try:
                return str(fast.apply_chat_template(form, tokenize=False, **(arguments or {})))
            except Exception:  # a template raises what it wants
                return None

    def spelled(self, row: int) -> Iterator[tuple[int, int, int, bytes, int]]:
        """Yield (kind, turn, first byte, spelling, size) of each token of a row that covers bytes."""
        example = self.batch.example(row)
        assert isinstance(example, EncodedExample)
        for token, at in enumerate(self._starts(example)):
            if size := int(example.byte_lengths[token]):
                spelling = self.encoder.view.spelling[int(example.token_ids[token])]
                yield int(example.kinds[token]), int(example.turns[token]), int(at), spelling, size

    @staticmethod
    def _starts(example: EncodedExample) -> Ints:
        """Return the byte [tokens] at which each token begins."""
        before = np.zeros(len(example.token_ids) + 1, np.int64)
        np.add.at(before, example.uncovered.at, example.uncovered.bytes)
        covered = np.cumsum(example.byte_lengths, dtype=np.int64) - example.byte_lengths
        starts: Ints = covered + np.cumsum(before)[:-1]
        return starts

    @cached_property
    def map(self) -> "ByteMap":
        return ByteMap.of(self)


@cache
def side(name: str) -> Side:
    return Side.of(name)


@dataclass(frozen=True)
class ByteMap:
    """What one side does with each byte of the shared texts of all conversations, concatenated."""

    shown: Bytes
    """a token covers it"""
    clean: Bytes
    """that token covers nothing else"""
    ends: Bytes
    """[bytes + 1] whether neither a token nor a run of uncovered bytes goes over this position"""
    bare: Ints
    """[bytes + 1] the number of tokens without bytes at each position"""

    @classmethod
    def of(cls, side: Side) -> "ByteMap":
        total = int(sizes().sum())
        shown, clean, inner, bare = (np.zeros(total + 2, np.int64) for _ in range(4))
        for row, first in enumerate((np.cumsum(sizes()) - sizes()).tolist()):
            example = side.batch.example(row)
            if not isinstance(example, EncodedExample):
                continue
            starts, lengths = first + side._starts(example), example.byte_lengths
            is_content = example.kinds == np.uint8(TokenKind.CONTENT)
            _mark(shown, starts, starts + lengths)
            _mark(clean, starts[is_content], (starts + lengths)[is_content])
            _mark(inner, starts[lengths > 0] + 1, (starts + lengths)[lengths > 0])
            np.add.at(bare, starts[lengths == 0], 1)
            gap_ends = np.append(starts, first + sizes()[row])[example.uncovered.at]
            _mark(inner, gap_ends - example.uncovered.bytes + 1, gap_ends)
        is_shown, is_clean, is_inner = (np.cumsum(marks) > 0 for marks in (shown, clean, inner))
        return cls(is_shown[:total], is_clean[:total], ~is_inner[: total + 1], bare[: total + 1])


def _mark(marks: Ints, starts: Ints, ends: Ints) -> None:
    """Count ranges of bytes: their sum up to a byte is the number of ranges that it is in."""
    np.add.at(marks, starts, 1)
    np.add.at(marks, ends, -1)


class AlignedPair(NamedTuple):
    """Two sides and their alignment."""

    teacher: Side
    student: Side
    shard: AlignedShard

    @classmethod
    def of(cls, teacher: str, student: str) -> "AlignedPair":
        left, right = side(teacher), side(student)
        return cls(left, right, align_tables(left.table, right.table, AlignmentSettings()))

    def swapped(self) -> ShardChunks:
        """Return the chunks with the sides exchanged."""
        return align(self.student.tokens, self.teacher.tokens, self.shard.turns)

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """[conversations] that both sides have"""
        return self.teacher.kept & self.student.kept

    @property
    def in_kept(self) -> Bytes:
        return np.repeat(self.kept, sizes())

    @property
    def aligned(self) -> Bytes:
        """The bytes in chunks that are compared."""
        return self._bytes_in(self.shard.chunks.kinds == ChunkKind.CONTENT)

    @property
    def learned(self) -> Bytes:
        return self._bytes_in((self.shard.chunks.kinds == ChunkKind.CONTENT) & self.shard.chunks.assistant)

    def _bytes_in(self, marked: npt.NDArray[np.bool_]) -> Bytes:
        """Return the bytes that are in marked chunks; those of conversations without chunks are in none."""
        spread = np.zeros(int(sizes().sum()), bool)
        spread[self.in_kept] = np.repeat(marked, self.shard.chunks.byte_lengths)
        return spread

    def visible_by_definition(self) -> dict[Visibility, Bytes]:
        """Return the bytes of conversations that both sides have, by who shows them."""
        left, right, aligned = self.teacher.map.shown, self.student.map.shown, self.aligned_by_definition()
        masks = {
            Visibility.ALIGNED: aligned,
            Visibility.UNCOMPARED: left & right & ~aligned,
            Visibility.TEACHER_ONLY: left & ~right,
            Visibility.STUDENT_ONLY: right & ~left,
            Visibility.UNSEEN: ~left & ~right,
        }
        return {visibility: mask & self.in_kept for visibility, mask in masks.items()}

    def aligned_by_definition(self) -> Bytes:
        """Return the bytes in chunks of which each token, on both sides, is content and has bytes."""
        left, right = self.teacher.map, self.student.map
        common = np.flatnonzero(left.ends & right.ends)
        starts, stops = common[:-1], common[1:]
        foreign = _counts(~(left.shown & left.clean & right.shown & right.clean))
        bare = _counts((left.bare + right.bare) > 0)
        # tokens without bytes inside a chunk, not at one of its edges, belong to it
        mixed = (foreign[stops] > foreign[starts]) | (bare[stops] > bare[starts + 1])
        aligned: Bytes = np.repeat(~mixed, stops - starts) & self.in_kept
        return aligned


def _counts(mask: Bytes) -> Ints:
    return np.concatenate([[0], np.cumsum(mask)])


class TurnEnd(NamedTuple):
    """The tokens from the last byte that is shown of an assistant's message to the end of its turn, and that end."""

    kind: str
    """of the conversation"""
    role: str
    """of the section of that byte"""
    inner: tuple[TokenKind, ...]
    end: TokenKind
    is_own: bool
    """whether the end belongs to a section of the message"""


def turn_ends(own: Side, row: int) -> Iterator[TurnEnd]:
    """Yield the ends of an assistant's turns that the template writes as the token that ends a text."""
    example = own.batch.example(row)
    assert isinstance(example, EncodedExample)
    end_id = own.encoder.tokenizer.fast.eos_token_id
    conversation, covering = conversations()[row], np.flatnonzero(example.byte_lengths)
    for sections in _assistant_sections(conversation):
        tokens = covering[np.isin(example.turns[covering], sections)]
        if not len(tokens):
            continue
        last = int(tokens[-1])
        following = covering[covering > last]
        gap = slice(last + 1, int(following[0]) if len(following) else len(example.token_ids))
        ends = np.flatnonzero(example.token_ids[gap] == end_id)
        # some end a turn with another token, and the text with this one
        if len(ends) and example.kinds[gap.start + int(ends[0])] != TokenKind.END_OF_TEXT:
            end = gap.start + int(ends[0])
            yield TurnEnd(
                conversation.kind,
                conversation.sections[int(example.turns[last])].role,
                tuple(TokenKind(kind) for kind in example.kinds[last + 1 : end].tolist()),
                TokenKind(int(example.kinds[end])),
                int(example.turns[end]) in sections,
            )


def _assistant_sections(conversation: Conversation) -> Iterator[list[int]]:
    """Yield the indices of the sections of each of the assistant's messages."""
    index = 0
    for message in conversation.messages:
        count = len(list(_message_sections(message)))
        if message["role"] == "assistant":
            yield list(range(index, index + count))
        index += count
