"""Corpora in which something is counted zero times: empty texts, texts of one token, nothing aligned."""

import json
from pathlib import Path

import pytest

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, FilesSource
from alm_pipeline.inspection.summary import summarize_alignments
from alm_pipeline.inspection.tables import tables
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.report import summarize, summary_rows
from storage.errors import UserError

pytestmark = pytest.mark.bad_input

CORPORA = {
    "one token each": ["a"] * 40,
    "white space": [" "] * 40,
    "one text": ["The lazy dog."],
}


@pytest.mark.parametrize("texts", CORPORA.values(), ids=CORPORA)
def test_a_count_of_zero_is_a_sentence_or_a_dash(config: AlmConfig, tmp_path: Path, texts: list[str]) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = FilesSource(urls=(str(file),))
    corpus = config.corpus.model_copy(update={"source": source, "held_out": 0.5})
    # neither side begins with a token of its own
    pipeline = Pipeline(
        config.model_copy(update={"corpus": corpus, "teacher": config.student.model}), str(tmp_path / "data")
    )
    try:
        pipeline.cache()
    except UserError:
        return
    rows = summary_rows(summarize(pipeline, with_student=False), {})
    shown = [
        cell for _, _, lines in tables(summarize_alignments(pipeline.alignments.url)) for line in lines for cell in line
    ]
    assert [text for text in (*(value for _, value in rows), *shown) if "nan" in text or "inf" in text] == []
    with pytest.raises(UserError, match=r"bits per byte|held out|example to train on"):
        pipeline.train()


@pytest.mark.parametrize("texts", [["a"], [""], [" "]])
def test_a_comparison_of_nothing_is_a_sentence(llama_folder: str, tmp_path: Path, texts: list[str]) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(UserError, match=r"no bits per byte|no text to compare"):
        compare_models([llama_folder], [texts_at(str(file), "text", 10)])
