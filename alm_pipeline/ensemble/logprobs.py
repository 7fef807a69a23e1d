"""An ensemble's log-probability of each token of a text, from the same distribution as in generation.

Texts longer than the members' contexts are computed in overlapping windows. Log-probabilities of the whole vocabulary
exist for only a few positions at a time.

Shapes: B rows, T tokens of a row with padding, W requested positions of a row, N positions of a batch, P positions of a
piece, H hidden width, V ids of the lead, L shared tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.ensemble.model import EnsembleModel
from alm_pipeline.evaluation.bits_per_byte import bits_per_byte
from alm_pipeline.models.configuration import context_length
from alm_pipeline.scoring.batching import BatchBudget
from alm_pipeline.scoring.windows import Ids, WindowPlan, WindowRow
from alm_pipeline.tokenization.spans import token_spans
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from storage.schemas import TokenKind

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TextLogprobs:
    """The T tokens of a text, which all members can read, and their log-probabilities."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    """[T] in nats; NaN for the first token, which has no prediction"""
    byte_lengths: npt.NDArray[np.int32]
    """[T] bytes of the text: 0 for special tokens, and without a space that the tokenizer puts before the text"""
    kinds: npt.NDArray[np.uint8]
    """[T] TokenKind; special tokens are not content"""


def text_logprobs(
    ensemble: EnsembleModel, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> list[TextLogprobs]:
    """Return the log-probabilities of each text, computed in batches of `batch_tokens`, including padding.

    Raises UserError for a text that the shared tokens cannot spell.
    """
    view = byte_view(ensemble.tokenizer.backend_tokenizer)
    ids = [np.array(ensemble.ids(text), np.int32) for text in texts]
    logprobs = id_logprobs(ensemble, ids, batch_tokens)
    kinds = [np.where(view.special[row], TokenKind.TEMPLATE, TokenKind.CONTENT).astype(np.uint8) for row in ids]
    lengths = [_byte_lengths(view, row, text) for row, text in zip(ids, texts, strict=True)]
    return list(map(TextLogprobs, ids, logprobs, lengths, kinds))


def _byte_lengths(view: ByteView, ids: Ids, text: str) -> npt.NDArray[np.int32]:
    """Return the bytes of the text that each token covers, or its spelling's if the tokenizer changes the text."""
    is_content = ~view.special[ids]
    content = ids[is_content]
    spans = token_spans(view, content, np.isin(content, list(view.added)), text.encode())
    lengths = np.zeros(len(ids), np.int32)
    lengths[is_content] = spans.ends - spans.starts if spans else view.lengths[content]
    return lengths


def text_bits_per_byte(texts: Sequence[TextLogprobs]) -> float:
    """Return the bits per byte over the content tokens that have a prediction, and the bytes that they cover."""
    columns = zip(*((text.logprobs, text.byte_lengths, text.kinds) for text in texts), strict=True)
    logprobs, lengths, kinds = (np.concatenate(column) for column in columns)
    return bits_per_byte(logprobs, lengths, kinds)


def id_logprobs(
    ensemble: EnsembleModel, rows: Sequence[Ids], batch_tokens: int = BATCH_TOKENS
) -> list[npt.NDArray[np.float32]]:
    """[T] for each row of the lead's ids: NaN for its first token, −∞ for a token that is not shared."""
    windows = WindowPlan.of(context_length(ensemble.config), None, None)
    begins = ensemble.tokenizer.bos_token_id
    window_rows = [
        row for k, ids in enumerate(rows) for row in windows.rows(k, ids, bool(len(ids)) and ids[0] == begins)
    ]
    logprobs = [np.full(len(ids), np.nan, np.float32) for ids in rows]
    for row, predictions in zip(window_rows, row_predictions(ensemble, window_rows, batch_tokens), strict=True):
        end = row.first + row.scored
        logprobs[row.example][end - len(predictions.logprobs) : end] = predictions.logprobs
    return logprobs


class RowPredictions(NamedTuple):
    """The predictions of the tokens that a row scores; a text's first token has none."""

    logprobs: npt.NDArray[np.float32]
    likeliest: npt.NDArray[np.bool_]
    """whether no other token is likelier"""


@torch.inference_mode()
def row_predictions(
    ensemble: EnsembleModel, rows: Sequence[WindowRow], batch_tokens: int = BATCH_TOKENS
) -> list[RowPredictions]:
    """Return the predictions of each row."""
    order, budget = sorted(range(len(rows)), key=lambda k: -len(rows[k].ids)), BatchBudget(batch_tokens)
    predictions: dict[int, RowPredictions] = {}
    while len(predictions) < len(rows):
        first = len(predictions)
        batch = order[first : first + budget.rows(len(rows[order[first]].ids))]
        predictions |= zip(batch, _predict_batch(ensemble, [rows[k] for k in batch]), strict=True)
    return [predictions[k] for k in range(len(rows))]


def _predict_batch(ensemble: EnsembleModel, batch: Sequence[WindowRow]) -> list[RowPredictions]:
    """Predict a batch. Rows are padded on the left, so that all requested positions are at their ends."""
    counts = [len(row.ids) - max(1, row.skipped) for row in batch]
    if not max(counts):
        return [RowPredictions(np.empty(0, np.float32), np.empty(0, bool)) for _ in batch]
    ids_BT = torch.zeros(len(batch), len(batch[0].ids) - 1, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for k, row in enumerate(batch):
        start = ids_BT.shape[1] + 1 - len(row.ids)
        ids_BT[k, start:] = torch.from_numpy(row.ids[:-1].astype(np.int64))
        mask_BT[k, start:] = 1
    hidden = [
        torch.cat([states_WH[len(states_WH) - count :] for states_WH, count in zip(states_BWH, counts, strict=True)])
        for states_BWH in ensemble.hidden(ids_BT, mask_BT, max(counts))
    ]
    targets = [row.ids[len(row.ids) - count :] for row, count in zip(batch, counts, strict=True)]
    columns = _predict_tokens(ensemble, hidden, torch.from_numpy(np.concatenate(targets).astype(np.int64)))
    parts = zip(*(np.split(column, np.cumsum(counts)[:-1]) for column in columns), strict=True)
    return [RowPredictions(*part) for part in parts]


def _predict_tokens(ensemble: EnsembleModel, hidden: Sequence[Tensor], targets_N: Tensor) -> RowPredictions:
    places_V = torch.full((ensemble.config.vocab_size,), -1)
    places_V[ensemble.shared_L.cpu()] = torch.arange(len(ensemble.shared_L))
    places_N = places_V[targets_N]
    logprobs_N, likeliest_N, done = torch.empty(len(targets_N)), torch.empty(len(targets_N), dtype=torch.bool), 0
    for logprobs_PL in ensemble.pieces(hidden, ensemble.device):
        piece = slice(done, done + len(logprobs_PL))
        places_P = places_N[piece].to(logprobs_PL.device)
        targets_P = logprobs_PL.gather(-1, places_P.clamp(min=0)[:, None]).squeeze(-1)
        logprobs_N[piece] = targets_P.masked_fill(places_P < 0, -torch.inf)
        likeliest_N[piece] = logprobs_PL.argmax(-1) == places_P
        done = piece.stop
    return RowPredictions(logprobs_N.numpy(), likeliest_N.numpy())
