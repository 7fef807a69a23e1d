"""Scores from the hidden states that an engine returns: this project's own head computes the numbers.

The head is the teacher's own, as its class in transformers computes it, with its scale and soft cap: the model is
loaded without its layers. Shapes: T tokens of a row, H hidden width.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.output_head import hidden_states, input_device
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.scorer import Floats, Scorer
from alm_pipeline.scoring.served.replies import RowScores, Served, WrongReply
from alm_pipeline.scoring.served.states import States, StatesReader


class HeadReader(StatesReader):
    """Computes the scores of a row from its hidden states."""

    def __init__(self, scorer: Scorer) -> None:
        """`scorer` has the teacher's head."""
        self.top_k, self._scorer, self._factor = scorer.top_k, scorer, np.float32(1)
        with torch.inference_mode(), scorer.computing():
            ids_BS = torch.zeros(1, 1, dtype=torch.int64, device=input_device(scorer.model))
            self.width = int(hidden_states(scorer.model, ids_BS).shape[-1])

    @classmethod
    def load(cls, teacher: ModelReference, config: ScoreConfig) -> "HeadReader":
        """Load the teacher's head. Raises UserError if it can't be computed without the teacher's layers."""
        model = teacher.load_head(config.dtype, device=config.served.head_device)
        reader = cls(Scorer.of(model, teacher.tokenizer, config.model_copy(update={"compile": False})))
        model.to("meta")  # type: ignore[arg-type]  # frees the embedding: the scorer has a copy of the head
        return reader

    def scaled(self, factor: float) -> "HeadReader":
        """Return a reader that multiplies all hidden states by a factor."""
        reader = copy(self)
        reader._factor = np.float32(factor)
        return reader

    @torch.inference_mode()
    def read(self, ids: Sequence[int], states_TH: States, /) -> tuple[RowScores, Served]:
        """Return the row's scores, and what is served. Raises WrongReply if the states can't be the teacher's."""
        if states_TH.shape != (len(ids), self.width):
            shape = " × ".join(map(str, states_TH.shape))
            raise WrongReply(
                f"has {shape} numbers, and the teacher {len(ids)} × {self.width}: it serves another model, or cut the "
                "text or its states"
            )
        _, served = super().read(ids, states_TH)
        next_T = torch.tensor([*ids[1:], 0])
        with self._scorer.computing():
            scores = self._scorer.head_scores(torch.from_numpy(states_TH * self._factor), next_T)
        logprobs = np.append(np.float32(np.nan), scores.logprobs[:-1])
        _check_finite(logprobs, scores.boundary_logprobs)
        return RowScores(logprobs, *scores[1:]), served


def _check_finite(logprobs: Floats, boundary_logprobs: Floats) -> None:
    """Raise WrongReply with the first token that has no score; a vocabulary may have no boundary token at all."""
    wrong = np.isnan(boundary_logprobs)
    wrong[1:] |= ~np.isfinite(logprobs[1:])
    if wrong.any():
        raise WrongReply(f"gives no finite score for token {int(np.argmax(wrong))}")
