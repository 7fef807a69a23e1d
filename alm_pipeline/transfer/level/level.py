"""The level of new tokens: how much probability they take as a whole, before any training.

Methods that make embeddings look at one token at a time, and none knows how likely new tokens are altogether. Means of
frequent pieces are likely everywhere: after FVT, new tokens take a quarter to a half of the probability where a token
comes next that both vocabularies have. One number repairs most of it: the nats that the logits of all new tokens lose.
It is found on texts, as the number with the least mean loss there: it gives new tokens a mean probability that is their
share of the tokens.

Most heads have no bias that could hold the number. Instead, their new rows are moved along the mean hidden state of the
texts, which is long: h · mean / ‖mean‖² is 1 on average (SmolLM2: 1 ± 0.25). A bias, or a direction on which hidden
states have more equal projections, gained no more (docs/how-to/transfer.md). A tied embedding moves with its head, by a
hundredth of its rows' length a nat.

Shapes: N predicted tokens, V tokens of the vocabulary, H hidden width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import Level
from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.models.output_head import Head, LayerHead, check_output_head, hidden_states, input_device, output_head
from alm_pipeline.runtime.progress import track
from alm_pipeline.transfer.level.words import ROUNDS, level_text
from storage.schemas import TokenKind

_NEAR = 0.05
"""nats that are not worth another pass"""
_MOST = 20.0
"""nats"""
_POSITIONS = 64
"""whose logits are in memory at once"""


@dataclass(frozen=True)
class FoundLevel:
    """What the logits of new tokens lose, and what that does to the texts that it was found on."""

    nats: float
    direction_H: npt.NDArray[np.float32] | None
    """by which a row of the head moves for a nat; None if its bias holds the number"""
    before: float
    """bits per byte of the texts without it; NaN if it was not measured"""
    after: float
    """the same with it"""
    tokens: int
    """of the texts, that are predicted"""

    def record(self) -> dict[str, float]:
        """Return what a manifest keeps of it."""
        measured = {"bits_per_byte_without": self.before, "bits_per_byte_with": self.after, "tokens": self.tokens}
        return {"nats": self.nats} | ({} if math.isnan(self.before) else measured)

    def __str__(self) -> str:
        return f"level of new tokens: {level_text(self.record())}"


def set_level(
    model: PreTrainedModel, new_V: npt.NDArray[np.bool_], texts: Callable[[], TextTokens], level: Level
) -> FoundLevel | None:
    """Lower the tokens that are new to the level, in place; None if there are none, or the setting is `none`.

    `texts` returns texts in the model's tokens. If `level` is a number, they only say where hidden states are. Raises
    UserError if the model's logits are not those of its output layer.
    """
    if level == "none" or not new_V.any():
        return None
    with matmul_precision("highest"), torch.no_grad():
        search = _LevelSearch(model, new_V, texts())
        return search.find(None if level == "measured" else float(level)) if search.texts else None


def apply_level(model: PreTrainedModel, new_V: npt.NDArray[np.bool_], found: FoundLevel) -> None:
    """Lower the new tokens of a model to a level that was found on another one like it, in place."""
    direction_H = None if found.direction_H is None else torch.from_numpy(found.direction_H)
    _NewRows(model, new_V).lower(found.nats, direction_H)


class _Seen(NamedTuple):
    """What a pass over the texts saw at each predicted token, and of the hidden states there."""

    logprobs_N: Tensor
    new_N: Tensor
    """log-probability of all new tokens together"""
    is_new_N: Tensor
    states_H: Tensor
    """the sum of the hidden states"""

    @classmethod
    def joined(cls, parts: Sequence["_Seen"]) -> "_Seen":
        own, new, is_new, states = ([part[k] for part in parts] for k in range(4))
        return cls(torch.cat(own), torch.cat(new), torch.cat(is_new), torch.stack(states).sum(0))

    @property
    def nats(self) -> float:
        """The loss of all tokens together."""
        return -float(self.logprobs_N.double().sum())

    def nats_to_lose(self) -> float:
        """Return how many nats new tokens' logits have to lose, so that their mean probability is their share.

        Half a new token is added to those of the texts, and half another one: a number exists where there are none.
        """
        new_N, others_N = self.new_N.double(), torch.log1p(-self.new_N.double().exp())
        share = (float(self.is_new_N.sum()) + 0.5) / (len(new_N) + 1)
        low, high = -_MOST, _MOST
        for _ in range(50):
            middle = (low + high) / 2
            is_too_likely = float(torch.sigmoid(new_N - middle - others_N).mean()) > share
            low, high = (middle, high) if is_too_likely else (low, middle)
        return round(low, 2)

    def direction_H(self) -> Tensor:
        """Return mean / ‖mean‖² of the hidden states, on which their mean has the projection 1."""
        mean_H = self.states_H / len(self.logprobs_N)
        return (mean_H / mean_H.square().sum()).float()


class _NewRows:
    """The rows of new tokens in the model's head."""

    def __init__(self, model: PreTrainedModel, new_V: npt.NDArray[np.bool_]) -> None:
        layer: Any = model.get_output_embeddings()
        self.has_bias = getattr(layer, "bias", None) is not None
        self.table: Tensor = layer.bias.data if self.has_bias else layer.weight.data
        self.ids = torch.from_numpy(np.flatnonzero(new_V)).to(self.table.device)
        self.scale: float = output_head(model).scale
        self.unchanged = self.table[self.ids].clone()

    def lower(self, nats: float, direction_H: Tensor | None) -> None:
        """Lower the rows' logits by this number of nats from their initial values: 0 restores them."""
        offset = torch.tensor(nats / self.scale) if direction_H is None else nats / self.scale * direction_H
        moved = self.unchanged.float() - offset.to(self.table.device)
        self.table[self.ids] = moved.to(self.table.dtype)


class _LevelSearch:
    """Looks for the level on texts, by lowering the rows of a model."""

    def __init__(self, model: PreTrainedModel, new_V: npt.NDArray[np.bool_], texts: TextTokens) -> None:
        self.model, self.rows = model.eval(), _NewRows(model, new_V)
        self.new_V = torch.from_numpy(new_V).to(self.rows.table.device)
        self.texts = list(_predicted(texts, context_length(model.config)))
        self.tokens = sum(len(text.at) for text in self.texts)
        self.bytes = sum(text.bytes for text in self.texts)

    def find(self, level: float | None) -> FoundLevel:
        """Lower the rows to the level, which is measured if it is None."""
        check_output_head(self.model)
        before = self._look()
        direction_H = None if self.rows.has_bias else before.direction_H()
        if level is not None:
            self.rows.lower(level, direction_H)
            return FoundLevel(level, _numbers(direction_H), math.nan, math.nan, self.tokens)
        nats, best = self._search(before, direction_H)
        self.rows.lower(nats, direction_H)
        bits = [seen.nats / math.log(2) / self.bytes for seen in (before, best)]
        return FoundLevel(nats, _numbers(direction_H), bits[0], bits[1], self.tokens)

    def _search(self, best: _Seen, direction_H: Tensor | None) -> tuple[float, _Seen]:
        """Return the nats with the least loss of those that were tried, and what was seen with them.

        A step that is right for a bias may be too long for rows: one that does not lower the loss is halved.
        """
        nats, step = 0.0, best.nats_to_lose()
        for _ in range(ROUNDS - 1):
            if abs(step) < _NEAR:
                break
            tried = round(min(_MOST, max(-_MOST, nats + step)), 2)
            self.rows.lower(tried, direction_H)
            seen = self._look()
            if seen.nats < best.nats:
                nats, best, step = tried, seen, seen.nats_to_lose()
            else:
                step /= 2
        return nats, best

    def _look(self) -> _Seen:
        head = output_head(self.model, torch.float32, len(self.new_V))
        parts = []
        with track("level of new tokens", self.tokens, "tokens") as advance:
            for text in self.texts:
                ids_1T = torch.from_numpy(text.ids)[None].to(input_device(self.model))
                states_TH = hidden_states(self.model, ids_1T)[0].to(head.device, torch.float32)
                parts.append(self._seen_in(text, states_TH[torch.from_numpy(text.at - 1)], head))
                advance(len(text.at))
        return _Seen.joined(parts)

    def _seen_in(self, text: "_PredictedText", states_NH: Tensor, head: Head | LayerHead) -> _Seen:
        targets_N = torch.from_numpy(text.ids[text.at]).to(head.device)
        own, new = [], []
        for states_PH, targets_P in zip(states_NH.split(_POSITIONS), targets_N.split(_POSITIONS), strict=True):
            logprobs_PV = head.logits(states_PH).log_softmax(-1)
            own.append(logprobs_PV.gather(-1, targets_P[:, None]).squeeze(-1))
            new.append(logprobs_PV[:, self.new_V].logsumexp(-1))
        numbers = (torch.cat(own), torch.cat(new), self.new_V[targets_N], states_NH.double().sum(0))
        return _Seen(*(values.cpu() for values in numbers))


class _PredictedText(NamedTuple):
    """A text and its tokens that are predicted."""

    ids: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    """[N] their places; the first token of a text has no prediction"""
    bytes: int
    """that they cover"""


def _predicted(texts: TextTokens, context: int | None) -> Iterator[_PredictedText]:
    first = 0
    for ids in texts.ids:
        kinds, lengths = (values[first : first + len(ids)][:context] for values in (texts.kinds, texts.byte_lengths))
        at = np.flatnonzero(kinds == TokenKind.CONTENT)
        at = at[at > 0]
        if len(at):
            yield _PredictedText(ids[:context].astype(np.int64), at, int(lengths[at].sum()))
        first += len(ids)


def _numbers(direction_H: Tensor | None) -> npt.NDArray[np.float32] | None:
    return None if direction_H is None else direction_H.numpy()
