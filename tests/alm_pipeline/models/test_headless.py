"""The headless model and its head are the whole model's, for the families that hide them and for every other class.

`ALM_EVERY_CLASS=1 pytest tests/alm_pipeline/models/test_headless.py` also builds a small model of every class that
transformers has for text, and for images and text (two minutes).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from alm_pipeline.config import ObjectiveConfig, ScoreConfig, TrainConfig
from alm_pipeline.models.configuration import ModelConfiguration, text_config
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.output_head import check_output_head, headless, hidden_states, output_head
from alm_pipeline.objective.term_weights import layers
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.loop.training_run import TrainingRun
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.models.small_models import MAPPINGS, NAMED, VOCABULARY, named_model, small_model
from tests.alm_pipeline.training.data.test_batch_stream import example
from tests.alm_pipeline.training.loop.test_train import FixedStream

BOUNDARY = torch.arange(0, VOCABULARY, 3)
OBJECTIVE = ObjectiveConfig.model_validate({"terms": {"alm": 1, "sft": 0.5}})


def examples(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 60, length).astype(np.int32) for length in lengths]


def whole_logprobs(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """[T, V] the log-softmax, in float64, of the whole model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)


@pytest.mark.parametrize("name", NAMED)
def test_scores_are_those_of_the_whole_models_logits(name: str) -> None:
    model, rows = named_model(name), examples(21, 1, 8)
    check_output_head(model)
    for ids, scores in zip(rows, Scorer(model, HeadVocabulary(BOUNDARY), ScoreConfig()).score(rows), strict=True):
        expected = whole_logprobs(model, ids)
        tokens = expected[:-1].gather(-1, torch.from_numpy(ids[1:].astype(np.int64))[:, None]).squeeze(-1)
        np.testing.assert_allclose(scores.logprobs[1:], tokens, atol=1e-4)
        np.testing.assert_allclose(scores.boundary_logprobs, expected[:, BOUNDARY].logsumexp(-1), atol=1e-4)


@pytest.mark.parametrize("name", NAMED)
def test_a_step_of_training_changes_the_text_part_alone(name: str, tmp_path: Path) -> None:
    model = named_model(name)
    text = {id(value) for part in (headless(model), model.get_output_embeddings()) for value in part.parameters()}
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    # an example per row: Qwen 2 VL's attention does not separate packed ones
    train = TrainConfig(steps=1, row_tokens=1, learning_rate=1e-2, weight_decay=0.1)
    stream = FixedStream([[[example(12)], [example(9)]]])
    for batch in stream.batches:
        batch["token_ids_BS"] %= 60
    vocabulary = HeadVocabulary(BOUNDARY)
    (entry,) = train_student(TrainingRun(model, stream, vocabulary, OBJECTIVE, train, tmp_path / "checkpoints"))
    assert np.isfinite(entry["loss"])
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert changed
    assert changed <= {key for key, value in model.named_parameters() if id(value) in text}
    assert {key for key in changed if ".layers." in key}


@pytest.mark.parametrize("name", NAMED)
def test_a_saved_model_loads_whole(name: str, tmp_path: Path) -> None:
    """As the class that it was, or Gemma 3's by either automatic class, and with the same logits."""
    model, (ids,) = named_model(name), examples(9)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "float32", device="cpu")
    assert type(loaded) is type(model)
    torch.testing.assert_close(whole_logprobs(loaded, ids), whole_logprobs(model, ids))
    assert ModelConfiguration.read(str(tmp_path)).vocabulary_rows == VOCABULARY


def test_the_layers_are_the_text_models() -> None:
    """Although the image tower has more of them."""
    kind, config = NAMED["Gemma 3"]()
    config.vision_config.num_hidden_layers = 5
    model = kind(config)
    assert len(layers(model)) == len(layers(headless(model))) == 2


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("XLNet", {"d_model": 32, "n_head": 4, "d_inner": 32}, id="XLNet"),
        pytest.param("BertGeneration", {"hidden_size": 32, "num_attention_heads": 4}, id="BERT"),
        pytest.param("XLM", {"emb_dim": 32, "n_layers": 1, "n_heads": 4}, id="XLM, whose id 2 is padding"),
        pytest.param("CpmAnt", {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8}, id="CPM-Ant"),
    ],
)
def test_a_model_that_sees_later_tokens_is_refused(family: str, settings: dict[str, Any]) -> None:
    """Its logits are those of its head, and yet no prediction of the next token."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=VOCABULARY, num_hidden_layers=1, **settings)
    names = (f"{family}{suffix}" for suffix in ("ForCausalLM", "LMHeadModel", "WithLMHeadModel", "Decoder"))
    model = next(filter(None, (getattr(transformers, name, None) for name in names)))(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(UserError, match=f"^{config.model_type}: its hidden states change with the tokens after them"):
        check_output_head(model)


@pytest.mark.bad_input
def test_a_prefix_model_is_refused() -> None:
    """PaliGemma reads a text that does not say what it answers as a prefix, in both directions."""
    model = small_model(transformers.PaliGemmaConfig, "AutoModelForImageTextToText")
    with pytest.raises(UserError, match=r"^paligemma: its hidden states change with the tokens after them"):
        check_output_head(model)


def test_models_that_see_earlier_tokens_only_are_accepted_in_every_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_output_head(tiny.tiny_gemma(VOCABULARY).to(dtype))


def test_a_padding_token_without_states_is_no_fault() -> None:
    """OLMo's id 1 is padding, whose embedding is zero."""
    check_output_head(small_model(transformers.OlmoConfig, "AutoModelForCausalLM"))


def scale_and_cap(config: Any) -> None:
    """Give every scale and cap that the text part has a value that changes logits."""
    names = ("logit_scale", "lm_head_multiplier", "logits_scaling", "final_logit_softcapping", "logits_soft_cap")
    for name in names:
        if hasattr(text_config(config), name):
            setattr(text_config(config), name, 1.7)


REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "BertConfig", "BigBirdConfig", "CamembertConfig", "Data2VecTextConfig", "ElectraConfig", "ErnieConfig",
            "MegatronBertConfig", "ModernBertDecoderConfig", "ProphetNetConfig", "RemBertConfig", "RobertaConfig",
            "RobertaPreLayerNormConfig", "RoCBertConfig", "RoFormerConfig", "XLMRobertaConfig", "XLMRobertaXLConfig",
            "Kosmos2_5Config",
        ),
        "its logits differ",  # layers between the last states and the head, or none for text alone
    ),
    **dict.fromkeys(
        ("BertGenerationConfig", "CpmAntConfig", "PaliGemmaConfig", "XLNetConfig"), "its hidden states change"
    ),
}  # fmt: skip
"""The configuration classes whose models are refused, and why."""
_MAPPINGS = MAPPINGS if os.environ.get("ALM_EVERY_CLASS") else {}
_EVERY_CLASS = [(automatic, kind) for automatic, mapping in _MAPPINGS.items() for kind in mapping]


@pytest.mark.parametrize(("automatic", "kind"), _EVERY_CLASS, ids=lambda value: getattr(value, "__name__", value))
def test_every_class_is_scored_or_refused_with_a_reason(automatic: str, kind: Any) -> None:
    try:
        model = small_model(kind, automatic, scale_and_cap)
        ids = torch.arange(8)[None]
        own = model(input_ids=ids, use_cache=False).logits[0]
    except Exception as error:  # whatever the class's own code raises
        pytest.skip(f"no small model of its defaults reads a text: {type(error).__name__}: {str(error)[:100]}")
    if reason := REFUSED.get(kind.__name__):
        with pytest.raises(UserError, match=reason):
            check_output_head(model)
        return
    check_output_head(model)
    head = output_head(model)
    torch.testing.assert_close(head.logits(hidden_states(model, ids)[0]), own.float()[:, : head.vocabulary])
