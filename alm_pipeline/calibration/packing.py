"""The choices of a question in one row: their prompt is computed once, and they come after it side by side.

Each token of a choice has the position that it would have right after the prompt, and a mask lets it attend to the
prompt and to the tokens of its own choice before it. The last token of a choice is predicted and never read, so choices
of one token cost nothing beside the prompt. Some models do not read such a mask (recurrent ones, kernels without masks,
sliding windows shorter than the row). So the longest question is also computed choice by choice, and where the two
differ, all questions are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.calibration.choices import EncodedQuestion
from alm_pipeline.models.output_head import headless, input_device
from alm_pipeline.scoring.batching import is_out_of_memory
from alm_pipeline.scoring.scorer import Scorer

Floats = npt.NDArray[np.float64]
_TOLERANCE = {4: 1e-3, 2: 5e-2}
"""by bytes of the dtype: how far the log-probabilities of both ways may be apart, per token"""


@dataclass(frozen=True)
class _Tree:
    """A question in one row: the prompt, and after it the choices but for their last tokens."""

    question: EncodedQuestion

    @cached_property
    def _branches(self) -> list[tuple[int, ...]]:
        return [choice.ids[-choice.scored :] for choice in self.question.choices]

    @cached_property
    def context(self) -> int:
        first = self.question.choices[0]
        return len(first.ids) - first.scored

    @cached_property
    def ids(self) -> list[int]:
        context = self.question.choices[0].ids[: self.context]
        return [*context, *(id_ for branch in self._branches for id_ in branch[:-1])]

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self) -> list[int]:
        after = (self.context + k for branch in self._branches for k in range(len(branch) - 1))
        return [*range(self.context), *after]

    def visible(self) -> Tensor:
        """[T, T] whether each place (row) attends to each other one."""
        sizes = [len(branch) - 1 for branch in self._branches]
        owners = torch.tensor([-1] * self.context + [number for number, size in enumerate(sizes) for _ in range(size)])
        is_shared = (owners[None] == -1) | (owners[None] == owners[:, None])
        return is_shared & torch.ones(len(self), len(self)).tril().bool()

    def predictions(self) -> Iterator[tuple[int, int]]:
        """Yield the place that predicts each token of each choice, and the token."""
        start = self.context
        for branch in self._branches:
            places = [self.context - 1, *range(start, start + len(branch) - 1)]
            yield from zip(places, branch, strict=True)
            start += len(branch) - 1


class ChoiceScorer:
    """Scores the choices of questions with a model in memory."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.is_packed: bool | None = None
        """whether the choices of a question are in one row; None before the first question"""

    def __call__(self, questions: Sequence[EncodedQuestion]) -> list[Floats]:
        """Return the log-probabilities of each question's choices; none for a question that can't be scored."""
        found: list[Floats] = [np.zeros(0)] * len(questions)
        order = [k for k in sorted(range(len(questions)), key=lambda k: -_size(questions[k])) if questions[k].choices]
        trees = [_Tree(questions[k]) for k in order]
        if trees and self.is_packed is None:
            self.is_packed = self._can_pack(trees[0])
        scored = self._packed(trees) if self.is_packed else self._plain(trees)
        for k, logprobs in zip(order, scored, strict=True):
            found[k] = logprobs
        return found

    def _plain(self, trees: Sequence[_Tree]) -> list[Floats]:
        """Score each choice as a row of its own."""
        rows = [choice.row() for tree in trees for choice in tree.question.choices]
        sums = iter([float(logprobs.sum(dtype=np.float64)) for logprobs in self._scorer.score_rows(rows)])
        return [np.array([next(sums) for _ in tree.question.choices]) for tree in trees]

    def _can_pack(self, longest: _Tree) -> bool:
        try:
            packed = self._batch([longest])[0]
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
            return False  # it takes no such mask, or memory is too small
        plain = self._plain([longest])[0]
        tokens = np.array([choice.scored for choice in longest.question.choices])
        tolerance = _TOLERANCE[4 if self._scorer.model.dtype.itemsize >= 4 else 2]
        return bool((np.abs(packed - plain) <= tolerance * tokens).all())

    def _packed(self, trees: Sequence[_Tree]) -> list[Floats]:
        found: list[Floats] = []
        while len(found) < len(trees):
            batch = trees[len(found) : len(found) + self._scorer.budget.rows(len(trees[len(found)]))]
            try:
                found += self._batch(batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
        return found + self._plain(trees[len(found) :])  # which makes its batches smaller

    @torch.inference_mode()
    def _batch(self, trees: Sequence[_Tree]) -> list[Floats]:
        """Score a batch of rows, padded on the right."""
        width, model = max(map(len, trees)), self._scorer.model
        ids_BT, positions_BT = torch.zeros(2, len(trees), width, dtype=torch.int64)
        visible_BTT = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
        for row, tree in enumerate(trees):
            ids_BT[row, : len(tree)] = torch.tensor(tree.ids)
            positions_BT[row, : len(tree)] = torch.tensor(tree.positions())
            visible_BTT[row, : len(tree), : len(tree)] = tree.visible()
        mask = torch.zeros(visible_BTT.shape, dtype=model.dtype).masked_fill_(
            ~visible_BTT, torch.finfo(model.dtype).min
        )
        places = [(row, *found) for row, tree in enumerate(trees) for found in tree.predictions()]
        rows_N, places_N, targets_N = torch.tensor(places).T
        device = input_device(model)
        with self._scorer.computing():
            output = headless(model)(
                input_ids=ids_BT.to(device),
                position_ids=positions_BT.to(device),
                attention_mask=mask[:, None].to(device),
                use_cache=False,
            )
            hidden_NH = output.last_hidden_state[rows_N.to(device), places_N.to(device)]
            logprobs_N = self._scorer.head_scores(hidden_NH, targets_N).logprobs
        sizes = [choice.scored for tree in trees for choice in tree.question.choices]
        ends = np.cumsum(sizes)
        sums = np.add.reduceat(logprobs_N.astype(np.float64), [0, *ends[:-1].tolist()])
        counts = [len(tree.question.choices) for tree in trees]
        return list(np.split(sums, np.cumsum(counts)[:-1]))


def _size(question: EncodedQuestion) -> int:
    return len(_Tree(question)) if question.choices else 0
