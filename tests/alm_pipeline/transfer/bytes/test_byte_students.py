"""A configuration with the tokenizer `bytes` makes, trains, evaluates and saves a byte-level student."""

from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alm_pipeline.config import BYTES, AlmConfig, ObjectiveConfig, StudentConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.recipes.recipes import RECIPES, recipe
from alm_pipeline.report import summarize
from storage.errors import UserError
from tests.alm_pipeline.training.loop.test_train import contents, trained

OBJECTIVE = ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0, "latents": 1.0}, balance="gradmag", temperature=5.0)


def to_bytes(config: AlmConfig, *, ngram_embeddings: bool, steps: int = 6) -> AlmConfig:
    student = StudentConfig(model=config.student.model, tokenizer=BYTES, ngram_embeddings=ngram_embeddings)
    train = config.train.model_copy(update={"steps": steps, "row_tokens": 256})
    return config.model_copy(update={"student": student, "objective": OBJECTIVE, "train": train})


@pytest.fixture(scope="module", params=[True, False], ids=["n-grams", "bytes"])
def pipeline(request: pytest.FixtureRequest, config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with a trained student, with and without n-gram embeddings, made without a question to the user."""
    asked: list[str] = []
    changed = to_bytes(config, ngram_embeddings=request.param, steps=40)
    made = Pipeline(changed, str(tmp_path_factory.mktemp("bytes")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", asked.append)
        made.run()
    assert not asked  # whether to run the code in the student's folder, by transformers
    return made


def test_a_byte_level_student_is_made_and_learns(pipeline: Pipeline) -> None:
    ngram_embeddings = pipeline.config.student.ngram_embeddings
    summary = summarize(pipeline)
    assert summary.aligned_share == 1.0
    assert summary.student_tokens == summary.text_bytes
    assert summary.bits_per_byte
    assert summary.bits_per_byte["student_after"] < summary.bits_per_byte["student_before"]
    assert summary.initialization["copied"] == 256 + 3
    assert summary.initialization.get("n-grams", 0) == (397 if ngram_embeddings else 0)
    metrics = pl.read_parquet(pipeline.student.path / "metrics.parquet")
    for term in OBJECTIVE.terms:
        assert metrics[term].tail(5).mean() < metrics[term].head(5).mean()


def test_the_saved_student_is_what_was_trained(config: AlmConfig, pipeline: Pipeline) -> None:
    ngram_embeddings = pipeline.config.student.ngram_embeddings
    folder, source = pipeline.student.fetch(), AutoTokenizer.from_pretrained(config.student.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=ngram_embeddings)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=ngram_embeddings)
    assert tokenizer.chat_template == source.chat_template
    assert tokenizer("é").input_ids == [0xC3, 0xA9]
    end = tokenizer.convert_tokens_to_ids(source.eos_token)
    assert model.config.eos_token_id == end == GenerationConfig.from_pretrained(folder).eos_token_id
    assert not model.config.tie_word_embeddings
    before = pipeline.distillation.initial_student().model
    was, now = before.state_dict(), model.state_dict()
    assert was.keys() == now.keys()
    frozen = {name for name in was if torch.equal(was[name], now[name])}
    assert frozen == {name for name in was if name.startswith("ngrams.")}
    names = {file.name for file in folder.iterdir()}
    assert ("modeling_ngram_bytes.py" in names) == ngram_embeddings


def test_a_run_that_was_killed_ends_with_the_same_student(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = to_bytes(config, ngram_embeddings=True)
    unbroken = trained(changed, tmp_path / "unbroken", None, monkeypatch)
    resumed = trained(changed, tmp_path / "resumed", 5, monkeypatch)
    assert contents(unbroken) == contents(resumed)


def test_settings_decide_the_students_name(config: AlmConfig, tmp_path: Path) -> None:
    """The byte tokenizer is made once. N-gram embeddings give another student."""
    pipelines = [Pipeline(to_bytes(config, ngram_embeddings=given), str(tmp_path)) for given in (True, False)]
    for pipeline in pipelines:
        pipeline.shard()
        pipeline.train_tokenizer()
    assert pipelines[0].tokens("student").name == pipelines[1].tokens("student").name
    folders = [pipeline.made_tokenizer for pipeline in pipelines]
    assert folders[0]
    assert folders[0].name.startswith("tiny-llama-bytes-")
    assert folders[0] == folders[1]


def test_n_gram_embeddings_are_for_bytes(config: AlmConfig) -> None:
    with pytest.raises(UserError, match="ngram_embeddings needs tokenizer `bytes`, but tokenizer is some/where"):
        override(to_bytes(config, ngram_embeddings=True), Overrides(tokenizer="some/where"))


def test_the_recipe_is_whole() -> None:
    found = recipe("bytes")
    assert "bytes" in RECIPES
    assert found.student.is_byte_level
    assert found.student.ngram_embeddings
    # an example's bytes, and what its tokenizer puts around them, fit into a row
    assert found.corpus.byte_limit + 8 <= found.train.row_tokens
