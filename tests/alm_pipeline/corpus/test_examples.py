"""Examples: ids of pieces, splits by document, samples by id."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.config import CorpusConfig
from alm_pipeline.corpus import Example, iter_examples
from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import corpus, jsonl


def examples(config: CorpusConfig) -> tuple[list[Example], dict[str, int]]:
    dropped: Counter[str] = Counter()
    return list(iter_examples(config, dropped)), dict(dropped)


def many(folder: Path, count: int = 2000, text: str = "text", **settings: Any) -> CorpusConfig:
    path = folder / "a.jsonl"
    path.write_bytes(jsonl(*({"text": text, "id": f"d{i}"} for i in range(count))))
    return corpus(path, **settings)


def test_only_cut_documents_have_piece_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "short"}, {"text": "one two three.\n\nfour five"}))
    found, dropped = examples(corpus(path, max_bytes=16))
    assert [(example.id, example.text) for example in found] == [
        ("a.jsonl:0", "short"),
        ("a.jsonl:1#0", "one two three.\n\n"),
        ("a.jsonl:1#1", "four five"),
    ]
    assert not dropped


def test_blank_pieces_are_counted_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 16 + b" " * 40 + b"y" * 12)
    found, dropped = examples(corpus(tmp_path / "a.txt", max_bytes=16))
    assert dropped == {"blank_piece": 2}
    assert [example.id for example in found] == ["a.txt#0", "a.txt#3", "a.txt#4"]


def test_conversations_are_cut_too(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "12345678"}] * 3 + [{"role": "user", "content": "x" * 20}]
    (tmp_path / "a.jsonl").write_bytes(jsonl({"chat": turns}))
    found, dropped = examples(corpus(tmp_path / "a.jsonl", messages="chat", max_bytes=16))
    assert [(example.id, example.messages) for example in found] == [
        ("a.jsonl:0#0", turns[:2]),
        ("a.jsonl:0#1", turns[2:3]),
    ]
    assert dropped == {"turn_over_max_bytes": 1}


def test_pieces_of_a_document_are_on_one_side(tmp_path: Path) -> None:
    found, _ = examples(many(tmp_path, 300, text="words " * 20, max_bytes=32, held_out=0.5))
    sides: dict[str, set[str]] = {}
    for example in found:
        sides.setdefault(example.id.partition("#")[0], set()).add(example.split)
    assert {len(splits) for splits in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "held_out"}


def test_shares_are_about_as_configured_and_independent(tmp_path: Path) -> None:
    found, dropped = examples(many(tmp_path, held_out=0.2, sample=0.5))
    assert 900 < len(found) < 1100
    assert 0.15 < sum(example.split == "held_out" for example in found) / len(found) < 0.25
    assert not dropped


def test_a_larger_sample_contains_the_smaller_and_moves_no_document(tmp_path: Path) -> None:
    small, _ = examples(many(tmp_path, sample=0.2, held_out=0.1))
    large, _ = examples(many(tmp_path, sample=0.4, held_out=0.1))
    assert set(map(repr, small)) < set(map(repr, large))


def test_extremes(tmp_path: Path) -> None:
    found, _ = examples(many(tmp_path, 100, held_out=0))
    assert [example.split for example in found] == ["train"] * 100


def test_max_examples_counts_after_sampling(tmp_path: Path) -> None:
    sampled, _ = examples(many(tmp_path, sample=0.3))
    assert examples(many(tmp_path, sample=0.3, max_examples=10))[0] == sampled[:10]


def test_splits_never_change(tmp_path: Path) -> None:
    """Golden splits, since published scores depend on which documents are held out."""
    found, _ = examples(many(tmp_path, 60, id="id", held_out=0.1))
    assert [example.id for example in found if example.split == "held_out"] == ["d10", "d18", "d19", "d23", "d55"]


def test_a_repeated_id_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "x", "id": 1}, {"text": "y", "id": 2}, {"text": "z", "id": 1}))
    with pytest.raises(UserError, match=r"two examples of the corpus have the id '1'; set corpus\.id"):
        examples(corpus(tmp_path / "a.jsonl", id="id"))


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, alm_pipeline.corpus; print({'datasets', 'torch', 'reasoning_gym'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


FORMS = ["e\u0301t\u00e9", "\u00e9t\u00e9", "plain \u212b", "Plain"]


def test_texts_are_converted_to_nfc_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*({"text": text} for text in FORMS)))
    found, dropped = examples(corpus(path))
    assert [example.text for example in found] == ["\u00e9t\u00e9", "\u00e9t\u00e9", "plain \u00c5", "Plain"]
    assert [example.normalized for example in found] == [True, False, True, False]
    assert not dropped
    assert [example.text for example in examples(corpus(path, normalize=()))[0]] == FORMS


def test_other_forms(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "\u00c9\ufb01"}, {"text": "\u0301"}))
    found, dropped = examples(corpus(path, normalize=("nfkc", "lowercase")))
    assert [example.text for example in found] == ["\u00e9fi", "\u0301"]
    found, dropped = examples(corpus(path, normalize=("nfd", "strip_accents")))
    assert ([example.text for example in found], dropped) == (["E\ufb01"], {"empty": 1})
    found, dropped = examples(corpus(path, normalize=("nfc", "nfd")))
    assert ([example.text for example in found], dropped) == (["\u0301"], {"no_form_fits_both_tokenizers": 1})
    with pytest.raises(UserError, match=r"corpus.normalize: 'nfx' is not a form"):
        examples(corpus(path, normalize=("nfx",)))


def test_conversations_are_normalized(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "e\u0301"}, {"role": "assistant", "content": "a", "name": "e\u0301"}]
    (tmp_path / "a.jsonl").write_bytes(jsonl({"chat": turns}))
    found, _ = examples(corpus(tmp_path / "a.jsonl", messages="chat"))
    assert found[0].messages == [{"role": "user", "content": "\u00e9"}, turns[1]]
    assert found[0].normalized


def test_a_message_that_only_calls_tools_has_an_empty_content(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    turns = [{"role": "user", "content": "one more?"}, call, {"role": "tool", "content": "2"}]
    empty = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    (tmp_path / "a.jsonl").write_bytes(jsonl({"chat": turns}, {"chat": empty}))
    found, dropped = examples(corpus(tmp_path / "a.jsonl", messages="chat"))
    assert [example.messages for example in found] == [[turns[0], {**call, "content": ""}, turns[2]]]
    assert dropped == {"not_text": 1}
