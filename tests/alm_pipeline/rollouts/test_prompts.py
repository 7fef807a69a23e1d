"""Prompts are a view of examples: what a model continues, and which examples are chosen."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.config import PromptsConfig
from alm_pipeline.rollouts.prompts import NO_ANSWER, NO_PROMPT, Place, Prompt, PromptChoice, choose, prompt_of
from storage.dataset import Dataset
from storage.errors import UserError


def row(text: str = "", messages: Any = None, **fields: Any) -> dict[str, Any]:
    stored = None if messages is None else json.dumps(messages)
    return {"id": "a", "split": "train", "text": text, "messages": stored, **fields}


def said(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]


def messages_of(found: Prompt | str) -> Any:
    assert isinstance(found, Prompt)
    assert found.text is None
    return found.messages


def test_a_conversation_ends_before_the_last_answer() -> None:
    chat = said("system", "user", "assistant", "user", "assistant")
    assert messages_of(prompt_of(row(messages=chat), PromptsConfig())) == chat[:4]
    with_tool = said("user", "assistant", "tool", "assistant")
    assert messages_of(prompt_of(row(messages=with_tool), PromptsConfig())) == with_tool[:3]
    assert messages_of(prompt_of(row(messages=chat, completion_at=2), PromptsConfig())) == chat[:2]
    assert prompt_of(row(messages=said("user", "user")), PromptsConfig()) == NO_ANSWER
    assert prompt_of(row(messages=said("assistant")), PromptsConfig()) == NO_PROMPT


def test_tools_come_with_a_conversation() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    found = prompt_of(
        row(messages=said("user", "assistant"), template_arguments=json.dumps({"tools": tools})), PromptsConfig()
    )
    assert isinstance(found, Prompt)
    assert found.arguments == {"tools": tools}


@given(st.text(min_size=1), st.integers(1, 40))
def test_the_beginning_of_a_text_is_whole_characters(text: str, most: int) -> None:
    content = text.encode()
    found = prompt_of(row(text), PromptsConfig(text_bytes=most))
    if isinstance(found, str):
        assert found == NO_PROMPT
        return
    assert found.text is not None
    assert text.startswith(found.text)
    assert len(found.text.encode()) <= min(most, len(content) // 2)


def test_the_beginning_of_a_text_ends_before_a_word() -> None:
    text = "one two three four five six seven"
    assert prompt_of(row(text), PromptsConfig(text_bytes=10)).text == "one two"  # type: ignore[union-attr]
    assert prompt_of(row("東京は日本の首都"), PromptsConfig(text_bytes=10)).text == "東京は"  # type: ignore[union-attr]
    found = prompt_of(row("Q: one? A: two", completion_at=8), PromptsConfig(text_bytes=3))
    assert found.text == "Q: one? "  # type: ignore[union-attr]


def test_a_round_draws_anew_and_a_smaller_one_is_part_of_a_larger(texts: Dataset) -> None:
    ids = {
        Place(shard, row): id_
        for shard in range(len(texts.complete_manifest().shards))
        for row, id_ in enumerate(texts.read_shard(shard)["id"].to_pylist())
    }
    small, large = (choose(texts, PromptChoice(count, 3, 0, 1)) for count in (10, 20))
    assert set(small) < set(large)
    assert large == sorted(large)
    assert len({ids[place] for place in large}) == 23
    for changed in (PromptChoice(10, 3, 0, 2), PromptChoice(10, 3, 1, 1)):
        assert set(choose(texts, changed)) != set(small)
    every = choose(texts, PromptChoice(None, None, 0, 0))
    assert len(every) == texts.complete_manifest().rows


def test_fewer_prompts_than_asked_for_are_reported(texts: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    every = choose(texts, PromptChoice(None, None, 0, 0))
    assert not caplog.records
    assert choose(texts, PromptChoice(None, 1000, 0, 0)) == every
    assert re.search(r"1000 prompts of the split held_out are asked for, and there are \d+ examples: all", caplog.text)


def test_a_split_without_examples_is_named(texts: Dataset, tmp_path: Any) -> None:
    table = texts.read_shard(0)
    other = Dataset(str(tmp_path), texts.kind, texts.label, texts.identity)
    columns = {name: table[name] for name in table.column_names} | {"split": ["train"] * table.num_rows}
    other.write_shard(0, columns, texts.complete_manifest().shards[0].counts)
    other.finish(1)
    with pytest.raises(UserError, match="has no example of the split held_out"):
        choose(other, PromptChoice(1, 1, 0, 1))
    assert choose(other, PromptChoice(1, 0, 0, 1))
