"""What a model wrote on a prompt, as a row of examples, or why it is left out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from alm_pipeline.conversations.sections import Messages, joined_text
from alm_pipeline.rollouts.prompts import Prompt
from storage.kinds.rollouts import TRUNCATED


class LeftOut(StrEnum):
    """Why what was written is left out."""

    EMPTY = "empty"
    """nothing, or only white space"""
    INVALID_UTF8 = "invalid_utf8"
    SPECIAL_TOKEN = "wrote_special_token"
    """one that is not the end of the text: the other side would read its literal"""
    OTHER_FORM = "answer_not_of_template"
    """the template does not write this answer in these characters, as it trims white space, or ends a turn otherwise"""
    SPECIAL_LITERAL = "special_token_in_prompt"
    """a message has the literal of a special token, which is text there"""
    OVER_CONTEXT = "prompt_over_context"
    """the prompt and the longest text on it don't fit the model"""
    UNREADABLE = "prompt_not_encoded"
    """the prompt can't be written in the writer's tokens, or its template refuses it"""
    FILTERED = "content_filter"
    """the endpoint withheld the text"""


@dataclass(frozen=True)
class Written:
    """A prompt with what was written on it; exactly one of `text` and `messages` is set."""

    prompt: Prompt
    text: str | None
    messages: Messages | None
    completion_at: int
    """where what was written begins: a byte of the text, or a message"""
    finish_reason: str
    prompt_tokens: int
    written_tokens: int
    ids: Sequence[int] | None = None
    """the writer's own tokens of all of it; None where they are not known"""

    @property
    def shared_text(self) -> str:
        """The text that both sides share."""
        return self.text if self.text is not None else joined_text(self.messages or [])


def columns_of(rows: Sequence[Written], *, with_arguments: bool, with_ids: bool) -> dict[str, Any]:
    """Return the columns of a shard of examples."""
    columns: dict[str, Any] = {
        "id": [row.prompt.id for row in rows],
        "split": [row.prompt.split for row in rows],
        "text": [row.shared_text for row in rows],
        "messages": pa.array([_json(row.messages) for row in rows], pa.string()),
        "completion_at": pa.array([row.completion_at for row in rows], pa.int32()),
        "finish_reason": [row.finish_reason for row in rows],
    }
    if with_arguments:
        columns["template_arguments"] = pa.array([_json(row.prompt.arguments) for row in rows], pa.string())
    if with_ids:
        columns["written_ids"] = [list(row.ids or ()) for row in rows]
    return columns


def _json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None


def counts_of(rows: Sequence[Written]) -> dict[str, int]:
    """Return what is counted of a shard: as of any examples, and how the texts ended and what they cost."""
    return {
        "examples": len(rows),
        "held_out_examples": sum(row.prompt.split == "held_out" for row in rows),
        "normalized_examples": 0,
        "text_bytes": sum(len(row.shared_text.encode()) for row in rows),
        "cut_examples": 0,
        "cut_bytes": 0,
        "truncated_examples": sum(row.finish_reason == TRUNCATED for row in rows),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "written_tokens": sum(row.written_tokens for row in rows),
    }
