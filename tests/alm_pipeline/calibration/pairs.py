"""Tiny base models and tuned children that are trained on the spot, with questions whose answers are noisy.

There are 24 × 24 prompts of two letters, each with four choices whose probabilities are known. The base learns from
fresh answers of most prompts, the child from a fixed few, over and over, so that it becomes overconfident.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS, CHOICES, HELD_OUT, LABELS = 24, 4, 300, 4
_CHARACTERS = "abcdefghijklmnopqrstuvwx" + "ABCDEFGHIJKLMNOPQRSTUVWX" + "=" + "0123"
_EQUALS, _FIRST_CHOICE = 2 * LETTERS, 2 * LETTERS + 1
Draw = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]


class Pair(NamedTuple):
    base: str
    tuned: str
    questions: str


class Task:
    """The prompts, the true probabilities of their answers, and which prompts are held out."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        first, second = (torch.randn(LETTERS, CHOICES, generator=generator) for _ in range(2))
        self.truth = (1.2 * (first[:, None] + second[None])).softmax(-1).reshape(-1, CHOICES)
        self.prompts = torch.cartesian_prod(torch.arange(LETTERS), torch.arange(LETTERS))
        order = torch.randperm(len(self.prompts), generator=generator)
        self.held_out, self.pool = order[:HELD_OUT], order[HELD_OUT:]

    def ids(self, prompts: Tensor) -> Tensor:
        equals = torch.full((len(prompts),), _EQUALS)
        return torch.stack([self.prompts[prompts, 0], LETTERS + self.prompts[prompts, 1], equals], 1)

    def answers(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        return torch.multinomial(self.truth[prompts], 1, generator=generator)[:, 0]

    def fresh(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        prompts = self.pool[torch.randint(len(self.pool), (size,), generator=generator)]
        return prompts, self.answers(prompts, generator)

    def fixed(self, count: int) -> Draw:
        """Draws of the same few prompts, always with the same answers."""
        prompts = self.pool[torch.randint(len(self.pool), (count,), generator=torch.Generator().manual_seed(5))]
        answers = self.answers(prompts, torch.Generator().manual_seed(6))

        def draw(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
            chosen = torch.randint(count, (size,), generator=generator)
            return prompts[chosen], answers[chosen]

        return draw

    def clean(self, count: int) -> Draw:
        """Draws of a few prompts with their likeliest answers."""

        def draw(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
            prompts = self.pool[:count][torch.randint(count, (size,), generator=generator)]
            return prompts, self.truth[prompts].argmax(-1)

        return draw

    def write_questions(self, file: Path) -> str:
        """Four labels of each held-out prompt, which are one cluster."""
        prompts = self.held_out.repeat(LABELS)
        answers = self.answers(prompts, torch.Generator().manual_seed(9))
        with file.open("w") as lines:
            for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
                text = "".join(_CHARACTERS[id_] for id_ in self.ids(torch.tensor([prompt]))[0].tolist())
                row = {"prompt": text, "choices": list("0123"), "answer": answer, "cluster": text}
                lines.write(json.dumps(row) + "\n")
        return str(file)


def _train(task: Task, model: LlamaForCausalLM, steps: int, size: int, draw: Draw, rate: float, seed: int) -> None:
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.AdamW(model.parameters(), rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (1 - 0.9 * step / steps)
        prompts, answers = draw(generator, size)
        logits = model(input_ids=task.ids(prompts)).logits[:, -1].float()
        loss = torch.nn.functional.cross_entropy(logits, _FIRST_CHOICE + answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token for each of 53 characters."""
    tokenizer = Tokenizer(models.BPE({character: id_ for id_, character in enumerate(_CHARACTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _make(folder: Path, base: tuple[int, int, float], child: Draw, steps: int, rate: float) -> Pair:
    """`base` is its number of steps, the size of its batches, and its learning rate."""
    task = Task()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(_CHARACTERS),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=16,
            tie_word_embeddings=False,
        )
    )
    _train(task, model, base[0], base[1], task.fresh, base[2], 2)
    tuned = copy.deepcopy(model)
    _train(task, tuned, steps, 64, child, rate, 3)
    for name, each in (("base", model), ("tuned", tuned)):
        each.save_pretrained(folder / name)
        _tokenizer().save_pretrained(folder / name)
    return Pair(str(folder / "base"), str(folder / "tuned"), task.write_questions(folder / "questions.jsonl"))


def overconfident_child(folder: Path) -> Pair:
    """A base that has not learned enough, and a child that has learned a few answers too well: a merge helps."""
    return _make(folder, (60, 64, 2e-3), Task().fixed(700), 220, 2e-3)


def no_free_lunch(folder: Path) -> Pair:
    """A base that has learned the task, and a child of 90 clean labels: the base dominates every merge."""
    return _make(folder, (260, 128, 3e-3), Task().clean(90), 200, 1.5e-3)
