"""Random ragged examples, packed into rows for a teacher and a student, as input for the baselines."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from alm_pipeline.models.output_head import Head

TEACHER_WIDTH, WIDTH = 5, 4


@dataclass
class Side:
    """One model's rows, flattened."""

    hidden: Tensor
    embeddings: Tensor
    token_ids: Tensor
    predicted: Tensor
    example: Tensor
    chunk: Tensor
    last: Tensor
    head: Head

    def leaves(self) -> list[Tensor]:
        bias = [] if self.head.bias_V is None else [self.head.bias_V]
        return [self.hidden, self.embeddings, self.head.weight_VH, *bias]


@dataclass
class Example:
    """The tokens of one example; chunks as numbers of teacher and student tokens, from the first token on."""

    teacher_tokens: int
    student_tokens: int
    chunks: list[tuple[int, int]] = field(default_factory=list)
    uncounted: int = 0
    """student tokens, from the first on, that don't count as predicted"""


EXAMPLES = [
    Example(4, 6, [(1, 1), (1, 3), (1, 1)]),
    Example(1, 3, [(1, 1)]),
    Example(5, 2, [(1, 1), (4, 1)]),
    Example(3, 1),
    Example(3, 4, [(1, 1), (1, 1), (1, 2)], uncounted=2),
]


class Maker:
    """Draws an example's numbers once, so that they are the same wherever it is packed."""

    def __init__(self, examples: list[Example], vocabularies: tuple[int, int] = (9, 7), seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.examples = examples
        self.heads = [
            Head(self.random(size, width).requires_grad_(), self.random(size).requires_grad_(), 0.7, 5.0)
            for size, width in zip(vocabularies, (TEACHER_WIDTH, WIDTH), strict=True)
        ]
        self.drawn = [
            [
                (self.random(tokens, width), self.random(tokens, width), self.ids(tokens, size))
                for tokens, width, size in zip(
                    (example.teacher_tokens, example.student_tokens), (TEACHER_WIDTH, WIDTH), vocabularies, strict=True
                )
            ]
            for example in examples
        ]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def ids(self, tokens: int, size: int) -> Tensor:
        return torch.randint(size, (tokens,), generator=self.generator)

    def side(self, index: int, rows: list[list[int]], padding: int) -> Side:
        """Pack the teacher's (0) or the student's (1) rows; `rows` lists the examples of each."""
        width = (TEACHER_WIDTH, WIDTH)[index]
        lengths = [sum(len(self.drawn[example][index][2]) for example in row) for row in rows]
        longest = max(lengths) + padding
        count = len(rows) * longest
        hidden, embeddings = self.random(count, width), self.random(count, width)
        side = Side(
            hidden, embeddings, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool),
            torch.full((count,), -1), torch.full((count,), -1), torch.zeros(0, dtype=torch.int64), self.heads[index],
        )  # fmt: skip
        last: dict[tuple[int, int], int] = {}
        for row, held in enumerate(rows):
            start = row * longest
            for example in held:
                start = self._place(side, index, example, start, last)
        side.last = torch.tensor([last[key] for key in sorted(last)], dtype=torch.int64)
        for number, key in enumerate(sorted(last)):
            sizes = [chunk[index] for chunk in self.examples[key[0]].chunks]
            side.chunk[last[key] - sizes[key[1]] + 1 : last[key] + 1] = number
        side.hidden.requires_grad_()
        side.embeddings.requires_grad_()
        return side

    def _place(self, side: Side, index: int, example: int, start: int, last: dict[tuple[int, int], int]) -> int:
        hidden, embeddings, ids = self.drawn[example][index]
        end = start + len(ids)
        side.hidden[start:end], side.embeddings[start:end], side.token_ids[start:end] = hidden, embeddings, ids
        side.example[start:end] = example
        side.predicted[start + 1 + (self.examples[example].uncounted if index else 0) : end] = True
        token = start
        for number, chunk in enumerate(self.examples[example].chunks):
            token += chunk[index]
            last[example, number] = token - 1
        return end


def packed(maker: Maker) -> tuple[Side, Side]:
    """Teacher and student, packed differently."""
    return maker.side(0, [[2, 0], [1, 3, 4]], 2), maker.side(1, [[0], [3, 4, 1], [2]], 1)


def unpacked(maker: Maker) -> tuple[Side, Side]:
    """One example per row, on both sides."""
    rows = [[example] for example in range(len(maker.examples))]
    return maker.side(0, rows, 0), maker.side(1, rows, 3)


def logits(side: Side, position: int) -> Tensor:
    """The oracle's logits of one position."""
    head = side.head
    assert head.bias_V is not None
    assert head.softcap is not None
    raw = torch.stack([row @ side.hidden[position] for row in head.weight_VH]) + head.bias_V
    return head.softcap * torch.tanh(head.scale * raw / head.softcap)


def example_positions(side: Side, example: int) -> list[int]:
    """Positions that predict a token that counts, in order."""
    tokens = [n for n in range(len(side.example)) if side.example[n] == example and side.predicted[n]]
    return [token - 1 for token in tokens]


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients; zeros if the loss does not depend on a leaf."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def check_close(expected: Tensor, got: Tensor, leaves: list[Tensor]) -> None:
    """Compare the values and gradients of two losses."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(got, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
