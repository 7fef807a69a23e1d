"""Tiny models that write: trained for some seconds, so that what they sample is text and ends."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests import tiny

WORDS = ["red", "blue", "green", "café", "naïve", "東京", "one", "two", "three", "über"]


def sentences(count: int, seed: int) -> list[str]:
    """Return short texts of a few words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(4, 9))) + "." for _ in range(count)]


def chats(count: int, seed: int) -> list[list[dict[str, str]]]:
    """Return conversations in which the assistant repeats what the user says, shorter."""
    texts = sentences(count, seed)
    return [[{"role": "user", "content": text}, {"role": "assistant", "content": text[:12]}] for text in texts]


def teach(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, steps: int, seed: int = 0, rate: float = 1e-2
) -> None:
    """Train on next tokens of these rows, in place."""
    chance = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        batch = chance.choices(rows, k=16)
        width = max(map(len, batch))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.where(mask.bool(), torch.tensor(-100))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def rows_of_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts, each with its end."""
    return [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]


def rows_of_chats(tokenizer: PreTrainedTokenizerFast, chats: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    """Return the tokens of conversations in the chat template."""
    return [
        tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
        for chat in chats
    ]


def trained_pair(folder: Path, *, steps: int = 120) -> tuple[str, str]:
    """Return the names of a tiny teacher and a tiny student of other families, which write texts and answers."""
    texts, talks = sentences(200, 1), chats(200, 2)
    names = []
    for name, tokenizer, make in (
        ("teacher", tiny.sentencepiece_tokenizer(400, texts), tiny.tiny_gemma),
        ("student", tiny.byte_level_tokenizer(300, texts), tiny.tiny_llama),
    ):
        # the answer begins in the same characters in a prompt as in a whole conversation
        tokenizer.chat_template = f"{tokenizer.chat_template}{GENERATION[name]}"
        model = make(len(tokenizer))
        teach(model, [*rows_of_texts(tokenizer, texts), *rows_of_chats(tokenizer, talks)], steps=steps)
        names.append(tiny.save(folder / name, model, tokenizer))
    return names[0], names[1]


GENERATION = {
    "teacher": "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "student": "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
