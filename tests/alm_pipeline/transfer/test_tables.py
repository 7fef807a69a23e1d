"""Models whose tables are not one row per token of the vocabulary: more rows in the embedding, or further tables."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from alm_pipeline.config import StudentConfig
from alm_pipeline.models.configuration import refuse_other_tables, text_config
from alm_pipeline.models.loading import embedding_rows, load_model
from alm_pipeline.models.output_head import headless
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.transfer.swap import embedding_tables
from alm_pipeline.transfer.task_arithmetic import apply_transfer
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.models.small_models import MAPPINGS, NAMED, small_model
from tests.alm_pipeline.models.test_headless import REFUSED

ROWS, ADDED = 400, 8


@pytest.fixture(scope="module", params=["Llama 3.2 Vision, text", "Llama 3.2 Vision"])
def llama_vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 400 tokens, 408 rows of its embedding and 400 of its head, beside a tokenizer of 401 tokens."""
    kind, config = NAMED[request.param]()
    text_config(config).vocab_size = ROWS
    tokenizer = tiny.byte_level_tokenizer(ROWS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    torch.manual_seed(0)
    return tiny.save(tmp_path_factory.mktemp("tables") / "vision", kind(config), tokenizer)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save(tmp_path_factory.mktemp("tables") / "target", tiny.tiny_gpt2(600), tiny.sentencepiece_tokenizer())


def _embedding(folder: str | Path) -> torch.Tensor:
    value: torch.Tensor = load_model(str(folder), "float32", device="cpu").get_input_embeddings().weight.data  # type: ignore[assignment]
    return value


def test_a_token_that_is_read_and_never_predicted_is_no_token(llama_vision: str) -> None:
    model = load_model(llama_vision, "float32", device="cpu")
    assert embedding_rows(model) == ROWS
    (scores,) = Scorer.of(model, LoadedTokenizer(llama_vision)).score([np.arange(20, dtype=np.int32)])
    assert np.isfinite(scores.logprobs[1:]).all()


def test_the_rows_that_a_class_adds_are_kept(llama_vision: str, target: str, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    counts, _ = transfer(llama_vision, target, moved, special_tokens="target")
    before, after = _embedding(llama_vision), _embedding(moved)
    assert len(after) == sum(counts.values()) + ADDED
    assert torch.equal(after[-ADDED:], before[-ADDED:])


@pytest.mark.parametrize("llama_vision", ["Llama 3.2 Vision, text"], indirect=True)
def test_a_fine_tune_keeps_them(llama_vision: str, target: str, tmp_path: Path) -> None:
    moved, result = tmp_path / "moved", tmp_path / "result"
    transfer(llama_vision, target, moved, special_tokens="target")
    apply_transfer(llama_vision, str(moved), llama_vision, result)
    torch.testing.assert_close(_embedding(result), _embedding(moved))


def test_its_own_tokenizer_gives_the_token_a_row(llama_vision: str, tmp_path: Path) -> None:
    assert transfer(llama_vision, llama_vision, tmp_path / "moved").counts == {"copied": ROWS, "drawn": 1}
    assert len(_embedding(tmp_path / "moved")) == ROWS + 1 + ADDED


def _gemma4(**settings: Any) -> Any:
    return small_model(
        transformers.Gemma4TextConfig,
        "AutoModelForCausalLM",
        lambda config: [setattr(config, name, value) for name, value in settings.items()],
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("config", "table"),
    [
        pytest.param(transformers.Gemma3nConfig, "embed_tokens_per_layer", id="Gemma 3n"),
        pytest.param(transformers.Gemma3nTextConfig, "embed_tokens_per_layer", id="Gemma 3n, text"),
        pytest.param(transformers.Gemma4Config, "embed_tokens_per_layer", id="Gemma 4"),
        pytest.param(transformers.Gemma4TextConfig, "embed_tokens_per_layer", id="Gemma 4, text"),
        pytest.param(transformers.DeepseekV4Config, "tid2eid", id="DeepSeek V4"),
        pytest.param(transformers.BltConfig, "patcher", id="BLT"),
    ],
)
def test_a_model_with_further_tables_by_token_is_known_by_its_configuration(config: Any, table: str) -> None:
    with pytest.raises(UserError, match=rf"^one: its layers look tokens up in a table of their own \({table}\)"):
        refuse_other_tables(config(), "one")


@pytest.mark.bad_input
def test_a_model_with_further_tables_by_token_gets_no_other_tokenizer(target: str, config: Any, tmp_path: Path) -> None:
    """It would look the new tokens up among the old ones; a student is refused before anything is scored."""
    folder = tiny.save(tmp_path / "gemma", _gemma4(), tiny.byte_level_tokenizer(64 + 256))
    with pytest.raises(UserError, match="look tokens up in a table of their own"):
        transfer(folder, target, tmp_path / "moved")
    with pytest.raises(UserError, match="look tokens up in a table of their own"):
        apply_transfer(folder, folder, folder, tmp_path / "result")
    run = config.model_copy(update={"student": StudentConfig(model=folder, tokenizer=target)})
    with pytest.raises(UserError, match="look tokens up in a table of their own"):
        Pipeline(run, str(tmp_path / "store")).train_tokenizer()


def test_a_family_is_not_refused_for_its_larger_models() -> None:
    """Gemma 4's have no table per layer, and DeepSeek's may route no layer by token."""
    refuse_other_tables(transformers.Gemma4TextConfig(hidden_size_per_layer_input=0), "one")
    refuse_other_tables(transformers.DeepseekV4Config(num_hash_layers=0), "one")  # type: ignore[call-arg]  # an alias
    refuse_other_tables(transformers.LlamaConfig(), "one")


_ODD = 61
_MAPPINGS = MAPPINGS if os.environ.get("ALM_EVERY_CLASS") else {}


def _odd_vocabulary(config: Any) -> None:
    """Give it a number of tokens that no other size has."""
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(text_config(config), name):
            setattr(text_config(config), name, _ODD)


@pytest.mark.parametrize(
    ("automatic", "kind"), [(automatic, kind) for automatic, kinds in _MAPPINGS.items() for kind in kinds]
)
def test_every_class_with_further_tables_by_token_is_refused(automatic: str, kind: Any) -> None:
    try:
        model = small_model(kind, automatic, _odd_vocabulary)
        tables = {id(table.value) for table in embedding_tables(model)}
    except Exception as error:  # whatever the class's own code raises
        pytest.skip(f"no small model of its defaults: {type(error).__name__}: {str(error)[:100]}")
    part = headless(model)
    tensors = [*part.named_parameters(), *part.named_buffers()]
    others = [name for name, value in tensors if id(value) not in tables and value.shape[:1] == (_ODD,)]
    if others and kind.__name__ not in REFUSED:
        with pytest.raises(UserError, match="look tokens up in a table of their own"):
            refuse_other_tables(model.config, "one")
