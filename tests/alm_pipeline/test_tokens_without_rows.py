"""A token without a row in its model's embedding costs only what needs it: for teacher, student, transfer, ensembles.

As the tokenizer of google/gemma-3-1b-it, whose `<image_soft_token>` is one id beyond its model's embedding.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, StudentConfig
from alm_pipeline.ensemble.generation import generate_text
from alm_pipeline.ensemble.loading import LoadedMember, ensemble_of
from alm_pipeline.ensemble.logprobs import text_logprobs
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.transfer.zero_step import transfer
from alm_pipeline.vocabulary.byte_view import byte_view, check_vocabulary
from storage.errors import UserError
from tests import tiny

IMAGE = "<image_soft_token>"
ROWS = 400
SYSTEM_SHOWS_IT = (
    "{% for message in messages %}{% if message['role'] == 'system' %}" + IMAGE + "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def tokenizer_with(
    special: Sequence[str] = (IMAGE,), ordinary: Sequence[str] = (), template: str = SYSTEM_SHOWS_IT
) -> PreTrainedTokenizerFast:
    """A tokenizer of 400 tokens, and further ones."""
    tokenizer = tiny.byte_level_tokenizer(ROWS)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(list(ordinary))
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of 400 rows beside a tokenizer of 401 tokens."""
    return tiny.save(tmp_path_factory.mktemp("rows") / "lacking", tiny.tiny_llama(ROWS), tokenizer_with())


@pytest.fixture
def chats(tmp_path: Path) -> CorpusConfig:
    """40 conversations, every fourth with a system prompt, which the template puts the token before."""
    file = tmp_path / "chats.jsonl"
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "It is 2, of course."}]
    lines = [json.dumps({"id": k, "messages": ([system] if k % 4 == 0 else []) + turns}) for k in range(40)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return CorpusConfig(name="chats", source=FilesSource(urls=(str(file),)), messages="messages", held_out=0.2)


@pytest.mark.bad_input
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_only_examples_that_need_it_are_left_out(
    side: str, folder: str, chats: CorpusConfig, config: AlmConfig, tmp_path: Path
) -> None:
    other = config.teacher if side == "student" else config.student.model
    student = folder if side == "student" else other
    train = config.train.model_copy(update={"steps": 1})
    run = config.model_copy(
        update={
            "corpus": chats,
            "teacher": folder if side == "teacher" else other,
            "student": StudentConfig(model=student),
            "train": train,
        }
    )
    pipeline = Pipeline(run, str(tmp_path / "store"))
    manifest = pipeline.run()
    sides: tuple[Any, Any] = ("teacher", "student")
    dropped = {each: pipeline.tokens(each).complete_manifest().dropped for each in sides}
    assert dropped[side] == {"token_without_embedding": 10}
    assert "token_without_embedding" not in dropped[sides[side == "teacher"]]
    assert np.isfinite(list(manifest.results["held_out_bits_per_byte"].values())).all()
    saved = str(pipeline.student.path)
    assert len(load_tokenizer(saved)) == len(load_tokenizer(student))
    if side == "student":
        assert load_model(saved, "float32").get_input_embeddings().weight.shape[0] == ROWS


def test_rows_are_part_of_an_identity_where_they_matter_alone(
    folder: str, chats: CorpusConfig, config: AlmConfig, tmp_path: Path
) -> None:
    pipeline = Pipeline(config.model_copy(update={"corpus": chats, "teacher": folder}), str(tmp_path))
    assert pipeline.tokens("teacher").identity["embedding_rows"] == ROWS
    assert "embedding_rows" not in pipeline.tokens("student").identity


def test_a_literal_of_it_in_a_text_is_text(folder: str) -> None:
    encoder = ByteEncoder(LoadedTokenizer(folder), None, ROWS)
    assert encoder.encode([f"Look: {IMAGE}"]).dropped == [None]


def test_a_new_tokenizer_gets_rows_for_all_of_its_tokens(folder: str, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", tiny.tiny_gpt2(600), tiny.sentencepiece_tokenizer())
    transfer(other, folder, tmp_path / "moved", special_tokens="target")
    assert load_model(str(tmp_path / "moved"), "float32").get_input_embeddings().weight.shape[0] == ROWS + 1


@pytest.mark.bad_input
@pytest.mark.parametrize("method", ["fvt", "mean", "focus"])
def test_a_transfer_away_from_it_uses_every_other_token(method: Any, folder: str, tmp_path: Path) -> None:
    target = tiny.save(tmp_path / "target", tiny.tiny_gpt2(600), tiny.sentencepiece_tokenizer())
    counts = transfer(folder, target, tmp_path / "moved", initialization=method, level="none").counts
    assert sum(counts.values()) == len(load_tokenizer(target))
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert all(value.isfinite().all() for value in moved.parameters())


@pytest.mark.bad_input
def test_a_transfer_to_its_own_tokenizer_draws_the_row_it_lacked(folder: str, tmp_path: Path) -> None:
    assert transfer(folder, folder, tmp_path / "moved").counts == {"copied": ROWS, "drawn": 1}


@pytest.mark.bad_input
def test_a_donor_may_lack_it(folder: str, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source", tiny.tiny_gpt2(600), tiny.sentencepiece_tokenizer())
    counts, _ = transfer(
        source, folder, tmp_path / "moved", initialization="omp", donor=folder, special_tokens="target"
    )
    assert sum(counts.values()) == ROWS + 1


@pytest.mark.bad_input
def test_it_is_never_predicted(folder: str) -> None:
    model, tokenizer = load_model(folder, "float32"), LoadedTokenizer(folder)
    vocabulary = HeadVocabulary.of(model, tokenizer)
    assert vocabulary.rows == ROWS
    assert int(vocabulary.boundary_ids_K.max()) < ROWS
    (scores,) = Scorer(model, vocabulary).score([np.arange(20, dtype=np.int32)])
    with torch.no_grad():
        logits = model(input_ids=torch.arange(20)[None]).logits[0, :-1]
    expected = torch.log_softmax(logits.double(), -1).gather(-1, torch.arange(1, 20)[:, None]).squeeze(-1)
    np.testing.assert_allclose(scores.logprobs[1:], expected, atol=1e-4)


@pytest.mark.bad_input
@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
def test_an_ensemble_shares_the_tokens_with_rows(vocabulary: Any, folder: str) -> None:
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    whole = LoadedMember(tiny.tiny_llama(ROWS + 1), tokenizer, name="whole")
    other = LoadedMember(tiny.tiny_gemma(600).eval(), tiny.sentencepiece_tokenizer(600), name="other")
    lacking = LoadedMember(model, tokenizer, name="lacking")
    for members in ([lacking, whole], [whole, lacking], [other, lacking]):
        ensemble = ensemble_of(members, vocabulary=vocabulary)
        if members[0] is not other:
            assert ROWS not in ensemble.shared_L.tolist()
        (scored,) = text_logprobs(ensemble, ["the quick fox"])
        assert np.isfinite(scored.logprobs[1:]).all()


@pytest.mark.bad_input
def test_models_are_compared_on_texts_that_all_can_read(folder: str, corpus_url: str) -> None:
    comparison = compare_models([folder], [texts_at(corpus_url, "text", 8)])
    assert comparison.total.texts == 8
    assert "token_without_embedding" not in comparison.left_out


@pytest.mark.bad_input
def test_a_prompt_that_needs_it_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match=rf"lacking: the text needs the token '{IMAGE}' \(id 400\).* 400 rows"):
        generate_text(folder, f"See {IMAGE}", lambda text: None, max_tokens=1)
    generate_text(folder, "See", lambda text: None, max_tokens=1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("special", "ordinary", "rows", "lacking"),
    [
        pytest.param([], ["aaaa"], 400, "1 of its ordinary tokens have none \\(400 'aaaa'\\)", id="one added"),
        pytest.param([IMAGE], [f"word{k}" for k in range(9)], 400, "9 of its ordinary", id="many added, one special"),
        pytest.param([], [], 399, "1 of its ordinary", id="one of the vocabulary"),
        pytest.param([], [], 50, "350 of its ordinary", id="a smaller model's tokenizer"),
    ],
)
def test_a_tokenizer_with_many_ordinary_tokens_without_rows_is_refused(
    special: list[str], ordinary: list[str], rows: int, lacking: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(special, ordinary)
    name = tiny.save(tmp_path / "model", tiny.tiny_llama(rows), tokenizer)
    target = tiny.save(tmp_path / "target", tiny.tiny_gpt2(600), tiny.sentencepiece_tokenizer())
    message = rf"^{name}: the tokenizer's highest id is \d+, the model's embedding has {rows} rows: {lacking}"
    with pytest.raises(UserError, match=message):
        ByteEncoder(LoadedTokenizer(name), None, rows)
    with pytest.raises(UserError, match=message):
        Scorer.of(load_model(name, "float32"), LoadedTokenizer(name))
    with pytest.raises(UserError, match=message):
        transfer(name, target, tmp_path / "moved")


@pytest.mark.bad_input
def test_a_token_around_every_text_needs_a_row() -> None:
    tokenizer = tiny.byte_level_tokenizer(ROWS)
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", tokenizer.bos_token_id)]
    )
    with pytest.raises(UserError, match=r"the tokenizer puts '<begin>' \(id 400\) around every text"):
        ByteEncoder(LoadedTokenizer.of(tokenizer), None, ROWS)


def test_a_few_ordinary_tokens_of_a_large_vocabulary_may_lack_rows() -> None:
    """As 16 of CodeLlama 13b Python's 32,016."""
    tokenizer = tiny.byte_level_tokenizer(ROWS)
    tokenizer.add_tokens([f"word{k}" for k in range(2100)])
    view = byte_view(tokenizer.backend_tokenizer)
    check_vocabulary(view, view.size - 2, "a model")
    with pytest.raises(UserError, match="3 of its ordinary tokens"):
        check_vocabulary(view, view.size - 3, "a model")
    encoder = ByteEncoder(LoadedTokenizer.of(tokenizer), None, view.size - 2)
    assert encoder.encode(["word2099", "word0"]).dropped == ["token_without_embedding", None]
