"""What of an evaluation set a corpus contains, against a search that joins words and looks for them as texts."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from alm_pipeline.corpus.contamination import find_contamination, ngrams, question_texts, words
from alm_pipeline.recipes.overrides import corpus_at
from flows.cli.app import app
from storage.errors import UserError


def test_words_have_neither_case_nor_punctuation() -> None:
    assert words("“Élan”, he said: 3.5 % of it's 東京!") == ["élan", "he", "said", "3", "5", "of", "it", "s", "東京"]


def test_a_short_text_is_one_ngram() -> None:
    assert list(ngrams("a b c", 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams("a b c", 5)) == [("a", "b", "c")]
    assert list(ngrams("…", 5)) == []


TEXTS = st.lists(st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS, asked=TEXTS, n=st.integers(1, 4))
def test_what_is_found_is_what_a_search_finds(
    texts: list[str], asked: list[str], n: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"t{k}", "text": f"{text} ."}) for k, text in enumerate(texts)))
    corpus = corpus_at(str(file), {"text": "text", "id": "id", "layout": "text"})
    questions = {f"q{k}": text for k, text in enumerate(asked)}
    found = find_contamination([corpus], questions, n)
    for id_, text in questions.items():
        letters = text.split()
        grams = {tuple(letters[k : k + n]) for k in range(len(letters) - n + 1)} or ({tuple(letters)} - {()})
        inside = {gram for gram in grams if any(f" {' '.join(gram)} " in f" {whole} " for whole in texts)}
        assert found.shares.get(id_, 0.0) == (len(inside) / len(grams) if grams else 0.0)
    assert (found.questions, found.examples) == (len(asked), len(texts))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    documents = ["Natalia sold clips to 48 of her friends in April, and then she sold half.", "Nothing of the kind."]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    rows = [
        {"question": "NATALIA sold clips to 48 of her friends in April?", "answer": "72"},
        {"question": "Who sold what?", "answer": "3"},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "corpus.jsonl"), str(tmp_path / "questions.jsonl")


def test_the_command_counts_and_lists(files: tuple[str, str]) -> None:
    arguments = ["contamination", "transfer", "--corpus", files[0], "--questions", files[1], "--words", "8"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    assert "1 of 2 questions (50.0%) are in 2 examples" in printed.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (document["contaminated"], document["questions"], document["examples"]) == (1, 2, 2)
    assert document["rows"][0]["share"] == pytest.approx(3 / 4)
    (question,) = (row["question"] for row in document["rows"])
    assert question in question_texts(corpus_at(files[1], {"layout": "text", "text": "{question} {answer}"}), Counter())


@pytest.mark.bad_input
def test_questions_that_are_missing_are_named(files: tuple[str, str]) -> None:
    without = CliRunner().invoke(app, ["contamination", "transfer", "--corpus", files[0]])
    assert "--questions: name the file" in without.output
    gone = CliRunner().invoke(app, ["contamination", "transfer", "--corpus", files[0], "--questions", "gone.jsonl"])
    assert "no file matches gone.jsonl" in gone.output
    with pytest.raises(UserError, match="answer"):
        question_texts(corpus_at(files[0], {"layout": "text", "text": "{question} {answer}"}), Counter())


@pytest.mark.bad_input
def test_questions_that_are_left_out_are_counted_and_none_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    """A set of which nothing was read would look clean."""
    asked, run = tmp_path / "asked.jsonl", tmp_path / "run.yaml"
    run.write_text(
        f"{{corpus: {{name: some, source: {{kind: files, urls: [{files[0]}]}}}}, teacher: /x, student: {{model: /x}}}}"
    )
    arguments = ["contamination", str(run), "--questions", str(asked), "--text", "{q}"]
    asked.write_text('{"q": "a b"}\n{"q": null}\n{broken')
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "0 of 1 questions" in shown.stdout
    assert "left out, questions, not_text: 1" in shown.stdout
    assert "left out, questions, invalid_json: 1" in shown.stdout
    for content in ("", '{"q": null}'):
        asked.write_text(content)
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 1
        assert "has no question" in refused.stderr
