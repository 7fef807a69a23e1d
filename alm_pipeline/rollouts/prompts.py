"""Prompts: a view of examples, of which each gives what a model continues, and no more is stored.

Of a conversation they are the messages before the assistant's last turn, of a prompt with a completion the prompt, and
of a plain text its beginning. Which examples give a round its prompts depends only on their ids, the seed and the
round.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from alm_pipeline.config import PromptsConfig
from alm_pipeline.conversations.sections import ASSISTANT, Messages
from alm_pipeline.corpus.examples import Split
from alm_pipeline.corpus.formats.tools import Arguments, stored_arguments
from alm_pipeline.runtime.progress import logger
from storage.dataset import Dataset
from storage.errors import UserError

NO_ANSWER = "no_answer_to_write"
"""why an example has no prompt: a conversation in which the assistant answers nothing"""
NO_PROMPT = "empty_prompt"
_SPACES = (b" ", b"\n", b"\t", b"\r")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model continues; exactly one of `text` and `messages` is set."""

    id: str
    split: Split
    text: str | None
    messages: Messages | None
    arguments: Arguments | None
    """what a conversation's chat template gets beside the messages"""


class PromptChoice(NamedTuple):
    """How many prompts of each split are drawn (None: all), and with which random numbers."""

    train: int | None
    held_out: int | None
    seed: int
    round: int

    def identity(self) -> dict[str, int | None]:
        """Return what decides which examples are chosen. Without prompts to train on, all rounds have the same."""
        fields = self._asdict()
        return fields if self.train != 0 else {**fields, "round": 0}


class Place(NamedTuple):
    """An example's shard and row."""

    shard: int
    row: int


def choose(examples: Dataset, choice: PromptChoice) -> list[Place]:
    """Return the places of the chosen examples, in the order of the examples.

    Held-out ones are the same in all rounds. Raises UserError if there is none of a split that is asked for.
    """
    counts = {"train": choice.train, "held_out": choice.held_out}
    found: dict[str, list[tuple[int, Place]]] = {split: [] for split in counts}
    for shard in range(len(examples.complete_manifest().shards)):
        table = examples.read_shard(shard, ["id", "split"])
        for row, (id_, split) in enumerate(zip(*(table[name].to_pylist() for name in ("id", "split")), strict=True)):
            if counts[split] != 0:
                found[split].append((_rank(id_, choice, split), Place(shard, row)))
    if lacking := [split for split, count in counts.items() if count != 0 and not found[split]]:
        raise UserError(
            f"{examples.url}: has no example of the split {lacking[0]} to make prompts of: use a larger corpus, or "
            "another corpus.held_out"
        )
    for split, count in counts.items():
        if count is not None and count > len(found[split]):
            logger.warning(
                "%s: %d prompts of the split %s are asked for, and there are %d examples: all of them are taken",
                *(examples.label, count, split, len(found[split])),
            )
    return sorted(place for split, count in counts.items() for _, place in sorted(found[split])[:count])


def _rank(id_: str, choice: PromptChoice, split: str) -> int:
    round_ = choice.round if split == "train" else 0
    digest = hashlib.blake2b(f"{choice.seed} {round_} {id_}".encode(), digest_size=8, person=b"prompts")
    return int.from_bytes(digest.digest(), "big")


def read_prompts(examples: Dataset, places: Sequence[Place], config: PromptsConfig) -> Iterator[Prompt | str]:
    """Yield the prompts at these places, in order; for an example without one, the reason."""
    return (prompt_of(row, config) for row in read_rows(examples, places))


def read_rows(examples: Dataset, places: Sequence[Place]) -> Iterator[dict[str, Any]]:
    """Yield the examples at these places, in order."""
    for shard, group in groupby(places, key=lambda place: place.shard):
        table = examples.read_shard(shard)
        yield from table.take([place.row for place in group]).to_pylist()


def prompt_of(row: Mapping[str, Any], config: PromptsConfig) -> Prompt | str:
    """Return the prompt of a row of examples, or why it has none."""
    if row["messages"] is None:
        text = _beginning(row["text"], row.get("completion_at"), config.text_bytes)
        return Prompt(row["id"], row["split"], text, None, None) if text.strip() else NO_PROMPT
    messages = _before_answer(json.loads(row["messages"]), row.get("completion_at"))
    if messages is None:
        return NO_ANSWER
    arguments = stored_arguments(row.get("template_arguments"))
    return Prompt(row["id"], row["split"], None, messages, arguments) if messages else NO_PROMPT


def _before_answer(messages: Messages, completion_at: int | None) -> Messages | None:
    """Return the messages before the assistant's last turn, which may call tools first; None if there is none."""
    if completion_at is not None:
        return messages[:completion_at]
    answers = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
    return messages[: answers[-1]] if answers else None


def _beginning(text: str, completion_at: int | None, most: int) -> str:
    content = text.encode()
    if completion_at is not None:
        return content[:completion_at].decode()
    end = min(most, len(content) // 2)
    # before white space, so that a word is not cut; a text without any is cut anywhere
    spaces = [content.rfind(space, 1, end + 1) for space in _SPACES]
    return content[: max(spaces) if max(spaces) > 0 else end].decode(errors="ignore")
