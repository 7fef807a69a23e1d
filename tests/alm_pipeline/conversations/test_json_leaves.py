"""The leaves of JSON text are where they are said to be, and are spelled as templates spell them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.conversations.json_leaves import json_leaves, spellings, with_leaves

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ['"', "\\", "\n", "é", "😀", "\ue000"]
)
VALUES = st.recursive(
    TEXTS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(TEXTS, VALUES, max_size=4)
WRITERS = {
    "as Python does": {"ensure_ascii": False},
    "in ASCII": {"ensure_ascii": True},
    "without spaces": {"ensure_ascii": False, "separators": (",", ":")},
    "on several lines": {"ensure_ascii": True, "indent": 2},
}


def values_of(mapping: dict[str, Any]) -> list[Any]:
    """The keys and leaves in order, written as loops."""
    found: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                found.append(key)
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        else:
            found.append(value)

    walk(mapping)
    return found


@given(MAPPINGS, st.sampled_from(sorted(WRITERS)))
def test_leaves_are_in_the_text(mapping: dict[str, Any], writer: str) -> None:
    text = json.dumps(mapping, **WRITERS[writer])
    leaves = json_leaves(text)
    assert leaves is not None
    assert [leaf.value for leaf in leaves] == values_of(mapping)
    for leaf in leaves:
        assert text.startswith(leaf.text, leaf.start)
        spelled = f'"{leaf.text}"' if isinstance(leaf.value, str) else leaf.text
        assert json.loads(spelled) == leaf.value
    rest = list(text)
    for leaf in leaves:
        rest[leaf.start : leaf.start + len(leaf.text)] = [""] * len(leaf.text)
    assert set("".join(rest)) <= set('{}[],:" \n')


@given(MAPPINGS, st.sampled_from(sorted(WRITERS)))
def test_what_is_equal_in_a_spelling_is_equal(mapping: dict[str, Any], writer: str) -> None:
    for leaf in json_leaves(json.dumps(mapping, **WRITERS[writer])) or []:
        found = {spelling.text: spelling.equal for spelling in spellings(leaf)}
        if isinstance(leaf.value, str):
            wanted = {leaf.value, json.dumps(leaf.value)[1:-1], json.dumps(leaf.value, ensure_ascii=False)[1:-1]}
        else:
            wanted = {json.dumps(leaf.value), str(leaf.value)}
        assert wanted | {leaf.text} == set(found)
        assert sum(size for _, _, size in found[leaf.text]) == len(leaf.text)
        for text, equal in found.items():
            ends = (0, 0)
            for spelled_at, text_at, size in equal:
                assert text[spelled_at : spelled_at + size] == leaf.text[text_at : text_at + size]
                assert ends <= (spelled_at, text_at)
                ends = (spelled_at + size, text_at + size)


def test_characters_that_are_escaped_are_not_equal() -> None:
    (_, leaf) = json_leaves(r'{"a": "b\n\u00e9\ud83d\ude00c"}') or []
    raw = next(spelling for spelling in spellings(leaf) if spelling.text == "b\né😀c")
    assert [leaf.text[at : at + size] for _, at, size in raw.equal] == ["b", "c"]


@pytest.mark.parametrize("text", ["", "[1]", "1", '{"a": 1', '{"a": 1, "a": 2}', "{'a': 1}", "[" * 100_000])
def test_text_that_is_no_mapping(text: str) -> None:
    assert json_leaves(text) is None


@given(MAPPINGS)
def test_leaves_are_replaced_in_the_order_of_the_text(mapping: dict[str, Any]) -> None:
    seen: list[Any] = []

    def number(value: Any) -> Any:
        seen.append(value)
        return str(len(seen)) if isinstance(value, str) else len(seen)

    numbered = with_leaves(mapping, number)
    assert seen == values_of(mapping)
    assert [int(value) for value in values_of(numbered)] == list(range(1, len(seen) + 1))
