"""The suite's models, trained from scratch on the share of its texts that students never see: teachers and bodies.

A model is made once, and kept in a folder whose name has a fingerprint of all that decides it.
"""

import itertools
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.suite.texts import DOMAINS, Domain, read_lines
from storage.fingerprints import hash_file, stored_name

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 1024
_ROW_TOKENS = 256
_TOKENIZER_BYTES = 6_000_000
_REPEATS: Mapping[Domain, int] = {"python": 1, "english": 3, "maths": 3}
"""how often a text is read in one pass over all texts: of Python there is far more"""


class Body(NamedTuple):
    """What a model is made as."""

    width: int
    layers: int
    vocabulary: int
    """tokens of its byte-level BPE"""
    steps: int
    learning_rate: float = 2e-2
    """of Muon, which trains the matrices; AdamW trains embeddings and norms at half of it"""
    rows: int = 8
    """of 256 tokens, in each step"""
    seed: int = 0


def made_body(root: Path, body: Body, files: Mapping[Domain, Path]) -> str:
    """Return the folder of the model and its tokenizer, which is trained first if it is not there."""
    texts = {domain: hash_file(file) for domain, file in files.items()}
    identity = {"body": body._asdict(), "row_tokens": _ROW_TOKENS, "texts": texts}
    folder = root / "bodies" / stored_name("bodies", f"{body.width}x{body.layers}", identity)
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _train(partial, body, files)
        partial.rename(folder)
    return str(folder)


def _train(folder: Path, body: Body, files: Mapping[Domain, Path]) -> None:
    texts = _shuffled_texts(files)
    tokenizer = _tokenizer(texts, body.vocabulary)
    torch.manual_seed(body.seed)
    model = _model(body, len(tokenizer))
    _fit(model, _batches(tokenizer, texts, body.rows), body)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _shuffled_texts(files: Mapping[Domain, Path]) -> list[str]:
    texts = [text for domain in DOMAINS for text in read_lines(files[domain]) * _REPEATS[domain]]
    random.Random(0).shuffle(texts)
    return texts


def _tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with words as GPT-2 has them, and no begin-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    ends = itertools.accumulate(map(len, texts))
    tokenizer.train_from_iterator(
        (text for text, end in zip(texts, ends, strict=True) if end < _TOKENIZER_BYTES), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=CONTEXT
    )


def _model(body: Body, vocabulary: int) -> PreTrainedModel:
    heads = max(1, body.width // 32)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=body.width,
            intermediate_size=body.width * 11 // 4,
            num_hidden_layers=body.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            # the default is for widths of thousands
            initializer_range=body.width**-0.5,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def _batches(tokenizer: PreTrainedTokenizerFast, texts: list[str], rows: int) -> Iterator[Tensor]:
    """Yield [rows, tokens] of ids: the texts one after the other, with an end of text after each, again and again."""
    size, ids = rows * _ROW_TOKENS, list[int]()
    for start in itertools.cycle(range(0, len(texts), 64)):
        encoded = tokenizer(texts[start : start + 64], add_special_tokens=False)["input_ids"]
        ids += [id_ for of_text in encoded for id_ in (*of_text, tokenizer.eos_token_id)]
        while len(ids) >= size:
            yield torch.tensor(ids[:size]).view(rows, _ROW_TOKENS)
            ids = ids[size:]


def _fit(model: PreTrainedModel, batches: Iterator[Tensor], body: Body) -> None:
    """Train by cross-entropy; the learning rate rises over a twentieth of the steps and falls in half a cosine.

    With AdamW alone, `small` still predicted little more than its tokens' frequencies after 400 steps of 4,096 tokens.
    """
    optimizers = _optimizers(model, body.learning_rate)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, optimizer.defaults["lr"], body.steps, pct_start=0.05, cycle_momentum=False
        )
        for optimizer in optimizers
    ]
    started = time.monotonic()
    for step, ids in enumerate(itertools.islice(batches, body.steps), 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if step % 50 == 0:
            print(
                f"{body.width}x{body.layers}: step {step} of {body.steps}, {loss.item():.3f} nats per token, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )


def _optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    matrices = [one for one in model.parameters() if one.ndim == 2 and id(one) not in embeddings]
    chosen = {id(one) for one in matrices}
    rest = [one for one in model.parameters() if id(one) not in chosen]
    return [
        torch.optim.Muon(matrices, learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, learning_rate / 2, (0.9, 0.95), weight_decay=0.0, fused=True),
    ]
