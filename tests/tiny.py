"""Tiny models and tokenizers, made on the spot: a Llama with byte-level BPE, a Gemma 3 with SentencePiece-style BPE."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "def add(left, right):\n    return left + right  # 12345\n",
    "Änderung, naïve café, 東京は日本の首都です。 Привет, мир! 🙂👩‍👩‍👧",
    "Natalia sold 48 clips in April, and half as many in May. How many did she sell? 48 + 24 = 72.",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
GEMMA_CHAT = (
    "<bos>{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
)


def byte_level_tokenizer(vocab_size: int = 400, texts: Sequence[str] = TEXTS) -> PreTrainedTokenizerFast:
    """As SmolLM2's: byte-level BPE, digits apart, no begin-of-text token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


def sentencepiece_tokenizer(vocab_size: int = 600, texts: Sequence[str] = TEXTS[:2]) -> PreTrainedTokenizerFast:
    """As Gemma's: spaces as U+2581, byte fallback, <bos> before every text, runs of spaces as added tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special + pieces, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _with_plain_bytes(tokenizer, pieces)
    tokenizer.add_tokens([AddedToken("\u2581\u2581", normalized=False), AddedToken("\n\n", normalized=False)])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=GEMMA_CHAT, **roles)


def _with_plain_bytes(tokenizer: Tokenizer, pieces: list[str]) -> Tokenizer:
    """The byte pieces are ordinary vocabulary, not added tokens that a text could spell."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(state))


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def tiny_llama(vocab_size: int, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            **SIZES,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )


def tiny_gemma(vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(1)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=vocab_size,
            **SIZES,
            head_dim=8,
            sliding_window=16,
            final_logit_softcapping=5.0,
        )
    )


def tiny_gpt2(vocab_size: int) -> PreTrainedModel:
    """With learned positions, so that positions that are off by a constant do not go unnoticed."""
    torch.manual_seed(2)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2)
    )


def tiny_qwen(vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(3)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **SIZES, initializer_range=0.2))


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """A Hugging Face model folder; returns its name for a configuration."""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
