"""A model's configuration is what its class says, and one that can't be used is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from alm_pipeline.models.configuration import ModelConfiguration, context_length
from alm_pipeline.models.reference import ModelReference
from storage.errors import UserError

LLAMA: dict[str, Any] = {"model_type": "llama", "vocab_size": 400, "max_position_embeddings": 512}
CODE = """
from transformers import PreTrainedConfig
class OwnConfig(PreTrainedConfig):
    model_type = "own_family"
    def __init__(self, seq_length=96, vocab_size=77, **others):
        super().__init__(**others)
        self.seq_length, self.vocab_size = seq_length, vocab_size
"""


def folder_of(config: object, folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


READ: dict[str, tuple[dict[str, Any], tuple[int, int | None, str, str]]] = {
    "all stated": (LLAMA | {"dtype": "bfloat16"}, (400, 512, "bfloat16", "AutoModelForCausalLM")),
    "the dtype's former name": (LLAMA | {"torch_dtype": "float16"}, (400, 512, "float16", "AutoModelForCausalLM")),
    "all left out": ({"model_type": "llama"}, (32000, 2048, "float32", "AutoModelForCausalLM")),
    "Gemma 3 4b as published": (
        {"model_type": "gemma3", "text_config": {"hidden_size": 2560}, "dtype": "bfloat16"},
        (262208, 131072, "bfloat16", "AutoModelForImageTextToText"),
    ),
    "no text part": (
        {"model_type": "gemma3", "text_config": None},
        (262208, 131072, "float32", "AutoModelForImageTextToText"),
    ),
    "n_positions": ({"model_type": "gpt2", "n_positions": 77}, (50257, 77, "float32", "AutoModelForCausalLM")),
    "max_seq_len": (
        {"model_type": "dbrx", "max_seq_len": 99, "vocab_size": 50},
        (50, 99, "float32", "AutoModelForCausalLM"),
    ),
    "scaled positions": (
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        (400, 512, "float32", "AutoModelForCausalLM"),
    ),
    "no limit: Mamba": ({"model_type": "mamba"}, (50280, None, "float32", "AutoModelForCausalLM")),
    "no limit: ALiBi": ({"model_type": "bloom"}, (250880, None, "float32", "AutoModelForCausalLM")),
    "a language model that reads images": (
        {"model_type": "qwen2_vl", "text_config": {"vocab_size": 70, "max_position_embeddings": 80}},
        (70, 80, "float32", "AutoModelForImageTextToText"),
    ),
    "the text part alone": (
        {"model_type": "mllama_text_model", "vocab_size": 70, "architectures": ["MllamaForCausalLM"]},
        (70, 131072, "float32", "MllamaForCausalLM"),
    ),
    "a decoder of an encoder-decoder family": (
        {"model_type": "bart", "vocab_size": 70, "is_encoder_decoder": False, "architectures": ["BartForCausalLM"]},
        (70, 1024, "float32", "AutoModelForCausalLM"),
    ),
    "an architecture that is not known": (
        LLAMA | {"architectures": ["MyLlamaForCausalLM"]},
        (400, 512, "float32", "AutoModelForCausalLM"),
    ),
    "architectures of another type": (
        LLAMA | {"architectures": None},
        (400, 512, "float32", "AutoModelForCausalLM"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_it_is_what_the_class_says(name: str, tmp_path: Path) -> None:
    config, expected = READ[name]
    read = ModelReference(folder_of(config, tmp_path)).configuration
    assert (read.vocabulary_rows, read.context_length, read.weights_dtype, read.class_name) == expected


@pytest.mark.parametrize("kind", ["Llama", "Gemma3", "GPT2", "Qwen2VL", "Mllama", "Mistral3", "Mamba"])
def test_a_saved_default_and_an_empty_one_say_the_same(kind: str, tmp_path: Path) -> None:
    """Whether save_pretrained writes the defaults or leaves them out."""
    config = getattr(transformers, f"{kind}Config")()
    config.save_pretrained(tmp_path)
    saved = ModelConfiguration.read(str(tmp_path))
    assert saved == ModelConfiguration.read(folder_of({"model_type": config.model_type}, tmp_path))
    assert saved.vocabulary_rows == config.get_text_config().vocab_size
    assert saved.context_length == getattr(config.get_text_config(), "max_position_embeddings", None)


def test_a_models_own_code_is_asked_where_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "own_code.py").write_text(CODE, encoding="utf-8")
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    name = folder_of({"model_type": "own_family", "auto_map": names, "vocab_size": 55}, tmp_path)
    read = ModelReference(name, trust_remote_code=True).configuration
    assert (read.vocabulary_rows, read.context_length, read.class_name) == (55, 96, "AutoModelForCausalLM")
    with pytest.raises(UserError, match=r"comes with its own code.* set trust_remote_code to true"):
        _ = ModelReference(name).configuration


def test_a_loaded_configuration_has_the_length_of_its_text_part() -> None:
    assert context_length(transformers.Gemma3Config(text_config={"max_position_embeddings": 77})) == 77
    assert context_length(transformers.BloomConfig()) is None


BAD: dict[str, tuple[object, str]] = {
    **{
        f"{setting}: {value!r}": (LLAMA | {setting: value}, setting)
        for setting in ("vocab_size", "max_position_embeddings")
        for value in (0, -1, "many", 1.5, [400], {}, True)
    },
    "vocab_size: None": (LLAMA | {"vocab_size": None}, "vocab_size"),
    "text part: zero rows": ({"model_type": "gemma3", "text_config": {"vocab_size": 0}}, "vocab_size is 0"),
    "text part: a list": ({"model_type": "gemma3", "text_config": [1]}, "can't be used"),
    "text part: a text": ({"model_type": "gemma3", "text_config": "none"}, "can't be used"),
    "text part: an unknown type": ({"model_type": "llava", "text_config": {"model_type": "nothing"}}, "can't be used"),
    "hidden_size: a text": (LLAMA | {"hidden_size": "wide"}, "hidden_size"),
    "layers: a list": (LLAMA | {"num_hidden_layers": []}, "num_hidden_layers"),
    "heads that do not divide": (LLAMA | {"hidden_size": 33, "num_attention_heads": 4}, "can't be used"),
    "no model_type": ({"vocab_size": 400}, "names no model_type"),
    "model_type: None": (LLAMA | {"model_type": None}, "names no model_type"),
    "model_type: a number": (LLAMA | {"model_type": 3}, "names no model_type"),
    "model_type: empty": (LLAMA | {"model_type": ""}, "can't be used"),
    "model_type: unknown": (LLAMA | {"model_type": "llama17"}, "`llama17`.*upgrade transformers"),
    "a list": ([LLAMA], "not a JSON object"),
    "a number": (3, "not a JSON object"),
    "null": (None, "not a JSON object"),
    "an encoder-decoder": ({"model_type": "t5"}, "is an encoder-decoder"),
    "an encoder-decoder with a decoder": ({"model_type": "bart"}, "is an encoder-decoder"),
    "an encoder-decoder that reads images": ({"model_type": "t5gemma2"}, "is an encoder-decoder"),
    "a sequence classifier": (
        LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
        "was saved as LlamaForSequenceClassification",
    ),
    "a sequence classifier, as a text": (
        LLAMA | {"architectures": "LlamaForSequenceClassification"},
        "was saved as LlamaForSequenceClassification",
    ),
    "a token classifier": (
        LLAMA | {"architectures": ["LlamaForTokenClassification"]},
        "was saved as LlamaForTokenClassification",
    ),
    "a question answerer": (
        LLAMA | {"architectures": ["LlamaForQuestionAnswering"]},
        "was saved as LlamaForQuestionAnswering",
    ),
    "a masked language model": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "was saved as BertForMaskedLM",
    ),
    "an image model": ({"model_type": "vit"}, "'vit', for which transformers has no language model|vocab_size"),
    "a sound model": ({"model_type": "wav2vec2"}, "'wav2vec2', for which transformers has no language model"),
    "a text part without a class": ({"model_type": "qwen2_vl_text"}, "for which transformers has no language model"),
    "an embedding model": ({"model_type": "clip"}, "for which transformers has no language model"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", BAD)
def test_a_configuration_that_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    config, message = BAD[name]
    folder = folder_of(config, tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        _ = ModelReference(folder).configuration
    assert str(raised.value).startswith(folder)
    assert "\n" not in str(raised.value)
    assert re.search("set |fix|fetch|name |add |upgrade", str(raised.value)), "it names no way out"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("there", "message"),
    [(True, r"has no config\.json"), (False, "not a local folder, and can't be a name on the Hub")],
)
def test_a_folder_without_a_configuration_is_refused(there: bool, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if there:
        folder.mkdir()
    with pytest.raises(UserError, match=message):
        _ = ModelReference(str(folder)).configuration
