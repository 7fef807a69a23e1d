"""Calls of tools and reasoning on two sides: what both write is aligned and learned, whatever is around it."""

from typing import Any

import numpy as np
import pytest

from alm_pipeline.alignment.chunks import AssistantTurns, ShardChunks, ShardTokens, align
from alm_pipeline.conversations.sections import ASSISTANT, REASONING, TOOL_CALLS, joined_text
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.rows import EncodedExample
from storage.schemas import ChunkKind
from tests import tiny
from tests.alm_pipeline.tokenization.chat.test_calls import ARGUMENTS, LEAVES, MANNERS, THINKING, call, chat

LEARNED = (ASSISTANT, REASONING, TOOL_CALLS)


def encoder(template: str, vocab_size: int) -> ByteEncoder:
    tokenizer = tiny.byte_level_tokenizer(vocab_size)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<tool_call>"]})
    tokenizer.chat_template = template
    return ByteEncoder(LoadedTokenizer.of(tokenizer))


def tokens_of(row: EncodedExample) -> ShardTokens:
    return ShardTokens(
        np.array([0, len(row.token_ids)]),
        row.byte_lengths,
        row.kinds,
        row.turns,
        np.array([0, len(row.uncovered.at)]),
        row.uncovered.at.astype(np.int32),
        row.uncovered.bytes.astype(np.int32),
        np.zeros(1, np.bool_),
    )


def aligned(teacher: str, student: str, messages: list[dict[str, Any]]) -> tuple[ShardChunks, list[bytes]]:
    """The chunks of one conversation, and the bytes of each."""
    rows = [encoder(teacher, 400), encoder(student, 300)]
    sides = [one.encode_conversations([messages]).example(0) for one in rows]
    assert all(isinstance(side, EncodedExample) for side in sides), sides
    teacher_row, student_row = sides
    assert isinstance(teacher_row, EncodedExample)
    assert isinstance(student_row, EncodedExample)
    assert teacher_row.roles == student_row.roles
    is_learned = np.array([role in LEARNED for role in teacher_row.roles])
    turns = AssistantTurns(np.array([0, len(is_learned)]), is_learned)
    chunks = align(tokens_of(teacher_row), tokens_of(student_row), turns)
    text, ends = joined_text(messages).encode(), np.cumsum(chunks.byte_lengths)
    return chunks, [text[end - size : end] for end, size in zip(ends, chunks.byte_lengths, strict=True)]


def learned(chunks: ShardChunks, pieces: list[bytes]) -> str:
    """The bytes of the assistant that are compared."""
    chosen = (chunks.kinds == ChunkKind.CONTENT) & chunks.assistant
    return b"".join(piece for piece, is_chosen in zip(pieces, chosen, strict=True) if is_chosen).decode()


ANSWER = "It rains."


@pytest.mark.parametrize(
    ("teacher", "student", "text"),
    [
        ("hermes", "hermes", ["look", *LEAVES]),
        ("hermes", "qwen3", ["look", *LEAVES]),
        ("hermes", "llama", ["look", *LEAVES]),
        ("deepseek", "hermes", ["look", *LEAVES]),
        ("llama", "deepseek", ["look", *LEAVES]),
        ("hermes", "hidden", []),
        # `n` is written last
        ("sorted", "hermes", ["look", *LEAVES[:2], *LEAVES[4:]]),
    ],
)
def test_calls_are_learned_where_both_sides_write_them(teacher: str, student: str, text: list[str]) -> None:
    chunks, pieces = aligned(MANNERS[teacher], MANNERS[student], chat(call(ARGUMENTS)))
    assert learned(chunks, pieces) == "".join(text) + ANSWER


def test_json_teaches_xml() -> None:
    """Names, keys and values by bytes, and what the template writes between them by place."""
    arguments = {"city": "Bern", "unit": "celsius", "days": 3}
    chunks, pieces = aligned(MANNERS["hermes"], MANNERS["xml"], chat(call(arguments)))
    assert learned(chunks, pieces) == "lookcityBernunitcelsiusdays3" + ANSWER
    paired = (chunks.kinds == ChunkKind.PAIRED) & chunks.assistant
    assert paired.sum() == 10  # into the call, between its 7 parts, out of it, and two ends of turns


def test_transitions_are_paired_and_learned() -> None:
    chunks, pieces = aligned(MANNERS["hermes"], MANNERS["deepseek"], chat(call({"a": 1}), content="Let me look."))
    paired = (chunks.kinds == ChunkKind.PAIRED) & chunks.assistant
    before = [b"".join(pieces[:place]).decode() for place in np.flatnonzero(paired)]
    said = "Weather?Let me look."
    # into the call, to its arguments, to the value, out of it, its end of turn; and the end of the last answer
    called = f"{said}looka1"
    assert before == [said, f"{said}look", f"{said}looka", called, called, f"{called}rain{ANSWER}"]


def test_thoughts_that_both_sides_write_are_learned() -> None:
    template = THINKING.replace("KEY", "reasoning_content")
    other = THINKING.replace("KEY", "thinking").replace("think>", "thoughts>")
    chunks, pieces = aligned(template, other, chat(call({"a": 1}), content="So.", reasoning="Hm, what?"))
    assert learned(chunks, pieces) == "Hm, what?So.looka1" + ANSWER
    paired = (chunks.kinds == ChunkKind.PAIRED) & chunks.assistant
    assert paired.sum() == 8  # into and out of the thoughts, four of the call, two ends of turns


def test_thoughts_that_one_side_alone_writes_are_not() -> None:
    chunks, pieces = aligned(
        MANNERS["hermes"], THINKING.replace("KEY", "thinking"), chat(call({"a": 1}), thinking="Hm.")
    )
    assert learned(chunks, pieces) == "looka1" + ANSWER
