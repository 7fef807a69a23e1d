"""Byte-level models of several architectures: what they compute, generate, save and load."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from alm_pipeline.models.loading import load_model
from alm_pipeline.models.output_head import check_output_head, hidden_states
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.transfer.bytes.byte_model import put_on_bytes
from alm_pipeline.vocabulary.byte_view import byte_view, tokens_by_spelling
from storage.errors import UserError
from tests import tiny

ARCHITECTURES: dict[str, tuple[Callable[[int], PreTrainedModel], Callable[[], PreTrainedTokenizerFast]]] = {
    "llama": (tiny.tiny_llama, tiny.byte_level_tokenizer),
    # scales its embeddings
    "gemma": (tiny.tiny_gemma, tiny.sentencepiece_tokenizer),
    # calls its own model with positional ids, and has learned positions
    "gpt2": (tiny.tiny_gpt2, tiny.byte_level_tokenizer),
    "qwen": (tiny.tiny_qwen, tiny.byte_level_tokenizer),
}
TEXTS = ["The quick brown fox", "jumps over the", "def add(left, right):\n", "東京 fox"]


def own_and_bytes(tokenizer: PreTrainedTokenizerFast) -> tuple[LoadedTokenizer, LoadedTokenizer]:
    return LoadedTokenizer.of(tokenizer), LoadedTokenizer.of(byte_level_tokenizer(tokenizer))


class Made:
    """A tiny model on bytes, and the model and tokenizers that it was made from."""

    def __init__(self, architecture: str, *, ngram_embeddings: bool) -> None:
        make_model, make_tokenizer = ARCHITECTURES[architecture]
        self.source = make_tokenizer()
        self.tokenizer = byte_level_tokenizer(self.source)
        # pads on the left, as generation needs it, with a padding token of its own
        self.tokenizer.padding_side = "left"
        self.model: Any = make_model(len(self.source)).eval()
        self.source_rows_VH = self.model.get_input_embeddings().weight.detach().clone()
        self.counts = put_on_bytes(
            self.model,
            LoadedTokenizer.of(self.source),
            LoadedTokenizer.of(self.tokenizer),
            ngram_embeddings=ngram_embeddings,
        ).counts()

    def ids(self, *texts: str) -> Tensor:
        return self.tokenizer(list(texts), return_tensors="pt", add_special_tokens=False).input_ids


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: pytest.FixtureRequest) -> Made:
    return Made(request.param, ngram_embeddings=True)


def embedded(made: Made, text: list[int]) -> Tensor:
    """[S, H] the input embeddings of a text, by trying every suffix."""
    spelled = tokens_by_spelling(byte_view(made.source.backend_tokenizer))
    own, scale = made.model.get_input_embeddings(), getattr(made.model.get_input_embeddings(), "embed_scale", 1.0)
    rows = []
    for end, id_ in enumerate(text, 1):
        since = max([0, *(place + 1 for place in range(end) if text[place] > 255)])
        suffixes = (bytes(text[start:end]) for start in range(max(since, end - 16), end))
        token = next((spelled[suffix] for suffix in suffixes if suffix in spelled), None)
        added = 0.0 if token is None else made.source_rows_VH[token] * scale
        rows.append(own(torch.tensor(id_)) + added)
    return torch.stack(rows)


def logits_of(made: Made, text: list[int]) -> Tensor:
    """[S, V] the logits of the plain architecture from embeddings, without cache and packing."""
    architecture = type(made.model).__mro__[1]
    plain = architecture(made.model.config).eval()
    weights = {name: value for name, value in made.model.state_dict().items() if not name.startswith("ngrams.")}
    plain.load_state_dict(weights)
    return plain(inputs_embeds=embedded(made, text)[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


def greedy(made: Made, text: list[int], steps: int) -> list[int]:
    out = list(text)
    for _ in range(steps):
        out.append(int(made.model(torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
    return out


@torch.no_grad()
def test_the_former_embedding_is_added_as_the_architecture_scales_it(made: Made) -> None:
    end = made.tokenizer.eos_token_id
    text = [*b"The quick ", end, *b"brown foxThe", end, end, *b" quick"]
    torch.testing.assert_close(made.model(torch.tensor([text])).logits[0], logits_of(made, text))
    assert made.counts["n-grams"] > 250


@torch.no_grad()
def test_packed_examples_are_what_they_are_alone(made: Made) -> None:
    texts = [list(text.encode()) for text in TEXTS]
    positions = torch.tensor([[place for text in texts for place in range(len(text))]])
    packed = hidden_states(made.model, torch.tensor([list("".join(TEXTS).encode())]), positions)[0]
    alone = [hidden_states(made.model, torch.tensor([text]), torch.arange(len(text))[None])[0] for text in texts]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)
    check_output_head(made.model)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_in_a_batch_is_the_slow_one(made: Made, cache: str) -> None:
    steps = 24
    batch = made.tokenizer(TEXTS, return_tensors="pt", padding=True, add_special_tokens=False)
    settings = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "disable_compile": True}
    found = made.model.generate(**batch, **settings, cache_implementation=cache)
    for row, text in zip(found.tolist(), TEXTS, strict=True):
        expected = greedy(made, list(text.encode()), steps)
        assert row[-len(expected) :] == expected


@torch.no_grad()
def test_each_beam_keeps_its_own_bytes(made: Made) -> None:
    """The scores of sequences from a search with a cache are those of the whole sequences."""
    ids = made.ids(TEXTS[0])
    settings = {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 4, "eos_token_id": None}
    results = [
        made.model.generate(ids, **settings, do_sample=False, use_cache=cached, length_penalty=0.0)
        for cached in (True, False)
    ]
    assert torch.equal(*results)


def test_a_cache_without_the_bytes_before_is_refused(made: Made) -> None:
    ids = made.ids(TEXTS[0])
    cache = made.model(ids[:, :-1], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"set past_key_values\.previous_ids"):
        made.model(ids[:, -1:], past_key_values=cache)
    cache.previous_ids = ids[:, :-1][:, -15:]
    torch.testing.assert_close(
        made.model(ids[:, -1:], past_key_values=cache).logits[0, -1], made.model(ids).logits[0, -1]
    )
    with pytest.raises(ValueError, match="need input_ids"):
        made.model(inputs_embeds=made.model.get_input_embeddings()(ids))


def test_everything_but_the_former_embeddings_is_trained(made: Made) -> None:
    made.model.zero_grad()
    ids = torch.arange(len(made.tokenizer))[None][:, :120]
    made.model(ids, labels=ids).loss.backward()
    without = {name for name, value in made.model.named_parameters() if value.grad is None}
    assert without == set()
    assert not any(name.startswith("ngrams") for name, _ in made.model.named_parameters())
    made.model.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_has_rows_of_its_own(tied: bool) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    model: Any = tiny.tiny_llama(len(tokenizer), tied=tied)
    rows = [model.get_input_embeddings().weight[98].clone(), model.get_output_embeddings().weight[98].clone()]
    put_on_bytes(model, *own_and_bytes(tokenizer), ngram_embeddings=False)
    own, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert own is not head
    byte = byte_view(tokenizer.backend_tokenizer).spelling[98][0]
    assert torch.equal(own[byte], rows[0])
    assert torch.equal(head[byte], rows[1])
    model.tie_weights()
    assert model.get_output_embeddings().weight is head


def test_it_is_saved_with_its_code_and_loads_with_other_dtypes(made: Made, tmp_path: Path) -> None:
    for folder, model in ((tmp_path / "one", made.model), (tmp_path / "two", None)):
        # the loaded model is saved again with all its files
        (model or load_model(str(tmp_path / "one"), "float32", trust_remote_code=True)).save_pretrained(folder)
    loaded = load_model(str(tmp_path / "two"), "float32", trust_remote_code=True)
    ids = made.ids(TEXTS[2])
    assert torch.equal(loaded(ids).logits, made.model(ids).logits)
    half = load_model(str(tmp_path / "two"), "bfloat16", trust_remote_code=True)
    assert half.get_buffer("ngrams.embedding.weight").dtype == torch.bfloat16
    assert torch.equal(half.get_buffer("ngrams.parents"), made.model.ngrams.parents)
    with pytest.raises(UserError, match="set trust_remote_code to true"):
        load_model(str(tmp_path / "two"), "float32")


LOADS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, trust = sys.argv[1], sys.argv[2] == "True"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
ids = tokenizer(["The quick", "fox"], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
print(model.generate(**ids, max_new_tokens=9, do_sample=False, eos_token_id=None).tolist())
assert not any(name.split(".")[0] in ("alm_pipeline", "storage", "flows") for name in sys.modules)
"""


@pytest.mark.parametrize("ngram_embeddings", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_it_loads_without_this_package(architecture: str, ngram_embeddings: bool, tmp_path: Path) -> None:
    made = Made(architecture, ngram_embeddings=ngram_embeddings)
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "modeling_ngram_bytes.py").exists() == ngram_embeddings
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", LOADS, "model", str(ngram_embeddings)]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    ids = made.tokenizer(["The quick", "fox"], return_tensors="pt", padding=True, add_special_tokens=False)
    expected = made.model.generate(**ids, max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert shown.stdout.strip() == str(expected.tolist())


def test_a_plain_byte_model_keeps_its_class_and_its_rows() -> None:
    made = Made("gemma", ngram_embeddings=False)
    assert type(made.model).__name__ == "Gemma3ForCausalLM"
    assert made.model.config.vocab_size == len(made.tokenizer)
    view = byte_view(made.source.backend_tokenizer)
    rows = made.model.get_input_embeddings().weight
    for letter in "The":
        # the token of that letter, not the byte fallback's, which has never been trained
        token = made.source.convert_tokens_to_ids(letter)
        assert view.spelling.index(letter.encode()) != token
        assert torch.equal(rows[ord(letter)], made.source_rows_VH[token])
    assert torch.equal(rows[0xE6], made.source_rows_VH[made.source.convert_tokens_to_ids("<0xE6>")])
    end = made.tokenizer.eos_token_id
    assert torch.equal(rows[end], made.source_rows_VH[made.source.eos_token_id])


def test_an_architecture_of_another_kind_is_refused() -> None:
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer))
    type_of = type("LlamaOfMine", (type(model),), {})
    model.__class__ = type_of
    with pytest.raises(UserError, match=r"student\.ngram_embeddings: llama"):
        put_on_bytes(model, *own_and_bytes(tokenizer), ngram_embeddings=True)


STREAMED = "naïve 東京 🙂👩‍👩‍👧\nПривет  мир, über — 日本語\n\n🙂"


@pytest.mark.parametrize("data", [STREAMED.encode(), STREAMED.encode()[:-1]], ids=["whole", "cut"])
def test_streamed_text_never_breaks_a_character(data: bytes) -> None:
    """Tokens go byte by byte into transformers' streamer, which writes all characters, each of them whole.

    Only a text that ends within a character gets a replacement character, at its end.
    """
    tokenizer = byte_level_tokenizer(tiny.byte_level_tokenizer())
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)

    def put() -> None:
        for id_ in [*data, tokenizer.eos_token_id]:
            streamer.put(torch.tensor([id_]))
        streamer.end()

    writer = threading.Thread(target=put)
    writer.start()
    pieces = [piece for piece in streamer if piece]
    writer.join()
    assert "".join(pieces) == data.decode(errors="replace")
    assert not any("\ufffd" in piece for piece in pieces[:-1])
    assert len(pieces) > 5


def test_the_automatic_classes_give_a_byte_model(tmp_path: Path) -> None:
    made = Made("qwen", ngram_embeddings=True)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    # beside a model type of its own, transformers does not make the tokenizer Qwen's
    assert loaded("e\u0301").input_ids == list("e\u0301".encode())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert model.config.model_type == "ngram_bytes"
