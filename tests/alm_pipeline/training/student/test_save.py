"""Plain transformers loads the student's folder and generates with it."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)

from alm_pipeline.config import AlmConfig, Dtype
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.student.save import round_weights, save_student
from storage.errors import UserError
from tests import tiny


class Always(LogitsProcessor):
    """Makes one token certain from a given length."""

    def __init__(self, token: int, length: int) -> None:
        self.token, self.length = token, length

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] >= self.length:
            scores[:, self.token] = 1e4
        return scores


def test_the_student_loads_and_generates_up_to_its_end_token(
    config: AlmConfig, gemma_folder: str, tmp_path: Path, sentencepiece: PreTrainedTokenizerFast
) -> None:
    student = config.student.model_copy(update={"tokenizer": gemma_folder})
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    pipeline.run()
    model = AutoModelForCausalLM.from_pretrained(pipeline.student.path)
    tokenizer = AutoTokenizer.from_pretrained(pipeline.student.path)
    assert tokenizer.backend_tokenizer.to_str() == sentencepiece.backend_tokenizer.to_str()
    assert tokenizer.chat_template == sentencepiece.chat_template
    generation, roles = model.generation_config, tokenizer
    # like the source, the student ends with the token that ends a turn
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert generation.eos_token_id == model.config.eos_token_id == end
    assert generation.bos_token_id == model.config.bos_token_id == roles.bos_token_id
    assert generation.pad_token_id == roles.pad_token_id
    inputs = tokenizer("The", return_tensors="pt", return_token_type_ids=False)
    length = inputs["input_ids"].shape[1] + 3
    ending = LogitsProcessorList([Always(end, length)])
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False, logits_processor=ending)
    assert output.shape[1] == length + 1
    assert output[0, -1] == end


def test_a_source_without_end_tokens_gets_its_tokenizers(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny.tiny_llama(len(byte_level))
    folder = tiny.save(tmp_path / "source", model, byte_level)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    save_student(model, load_tokenizer(folder), [], tmp_path / "student")
    stored = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert (stored["eos_token_id"], stored["pad_token_id"]) == (byte_level.eos_token_id, byte_level.pad_token_id)
    assert (stored["temperature"], stored["do_sample"]) == (0.6, True)  # the source's settings are kept


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_weights_are_stored_in_the_requested_type_as_evaluated(llama_folder: str, tmp_path: Path, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    round_weights(model, dtype)
    evaluated = {name: value.clone() for name, value in model.state_dict().items()}
    save_student(model, load_tokenizer(llama_folder), [], tmp_path, dtype)
    assert ModelReference(str(tmp_path)).weights_dtype == dtype
    stored = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stored.dtype == getattr(torch, dtype)
    for name, value in stored.state_dict().items():
        torch.testing.assert_close(value.float(), evaluated[name], rtol=0, atol=0)


def test_weights_beyond_the_range_are_refused(llama_folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    model.get_input_embeddings().weight.data[0, 0] = 1e6
    with pytest.raises(
        UserError, match=r"train\.save_dtype: model\.embed_tokens\.weight has .* beyond the range of float16"
    ):
        round_weights(model, "float16")


def test_settings_of_sampling_are_saved_as_such(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Llama 2's: transformers reads them without do_sample, and refuses to save them so once changed."""
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[1, 2], temperature=0.6, top_p=0.9)
    save_student(model, tokenizer, [], tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["top_p"]) == (True, 0.6, 0.9)
    assert "the student is saved with do_sample: true" in caplog.text
