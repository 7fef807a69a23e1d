"""The beginnings of held-out examples that samples continue.

Of a conversation, a sample is the next answer: its prompt is rendered by the student's chat template as in use, from
the messages before the last answer, with the row's tools, up to the beginning of an answer.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.conversations.sections import ASSISTANT, Messages
from alm_pipeline.corpus.formats.tools import Arguments, stored_arguments
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.chat.template import TemplateRefused
from alm_pipeline.vocabulary.framing import plain_backend
from storage.dataset import Dataset

_PROMPT_TOKENS = 32
"""the maximum length of a prompt of plain text, which is also at most half of its text"""

Ids = list[int]


def sample_prompts(
    held_out: HeldOut,
    count: int,
    tokenizer: LoadedTokenizer,
    examples: Dataset | None = None,
    context: int | None = None,
) -> list[Ids]:
    """Return the student's tokens of `count` prompts, of the first examples that have one.

    `examples` has the conversations; without it, and where the template refuses the messages, a prompt is what comes
    before the first answer. A prompt of `context` tokens or more leaves no room for an answer, and is left out.
    """
    if not count:
        return []
    found = (
        prompt for prompt in _prompts(held_out, tokenizer, examples) if prompt and len(prompt) < (context or np.inf)
    )
    return [prompt for _, prompt in zip(range(count), found, strict=False)]


def _prompts(held_out: HeldOut, tokenizer: LoadedTokenizer, examples: Dataset | None) -> Iterator[Ids]:
    ids = held_out.column("student_tokens", "token_ids")
    chunks = (held_out.column("alignments", column) for column in ("student_tokens", "assistant"))
    names: list[str] = held_out.drawn["examples"]["id"].to_pylist()
    # a row of a dataset of texts has no conversation, so none is looked for
    rows = _conversations(examples, names) if examples and held_out.has_conversations else iter([None] * len(names))
    for row, token_ids, tokens, assistant in zip(rows, ids, *chunks, strict=True):
        prompt = row and _next_answer(
            tokenizer, json.loads(row["messages"]), stored_arguments(row.get("template_arguments"))
        )
        yield prompt or token_ids[: _prompt_length(tokens, assistant)].tolist()


def _conversations(examples: Dataset, names: Iterable[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the row of each example; `names` are in the order of the dataset. Shards are read as they are needed."""
    wanted = list(names)
    for shard in range(len(examples.complete_manifest().shards)):
        table = examples.read_shard(shard)
        found = table.filter(pc.is_in(table["id"], pa.array(wanted, pa.string()))).to_pylist()
        yield from (row if row["messages"] else None for row in found)


def _next_answer(tokenizer: LoadedTokenizer, messages: Messages, arguments: Arguments | None) -> Ids | None:
    """Return the prompt of the last answer; None if the template does not take the messages before it."""
    answers = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    before = messages[: answers[-1]] if answers else messages
    if not before:
        return None
    try:
        text = tokenizer.template.prompt(before, arguments)
    except TemplateRefused:
        return None
    return list(plain_backend(tokenizer.fast.backend_tokenizer).encode(text, add_special_tokens=False).ids)


def _prompt_length(tokens: npt.NDArray[np.generic], assistant: npt.NDArray[np.generic]) -> int:
    """`tokens` and `assistant` have a value per chunk of the example; `assistant` is empty for plain text."""
    if assistant.any():
        return int(tokens[: int(assistant.argmax())].sum())
    return int(min(_PROMPT_TOKENS, tokens.sum() // 2))
