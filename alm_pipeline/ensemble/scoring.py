"""What an ensemble gives texts: the log-probability of each token, from the distribution that it generates with.

Texts longer than the members' contexts are scored in overlapping windows. Log-probabilities of the whole vocabulary
exist for a few positions at a time only.

Shapes: B rows, T tokens of a row with padding, W positions that are wanted of it, N positions of a batch, P positions
of a piece, H hidden width, V ids of the lead, L shared tokens.
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
from alm_pipeline.models.files import length_in
from alm_pipeline.scoring.batching import Budget
from alm_pipeline.scoring.windows import Ids, Row, Windows
from alm_pipeline.tokenization.spans import token_spans
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from storage.schemas import TokenKind

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TextScore:
    """A text's T tokens, spelled with those that all members can read."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    """[T] in nats; NaN for the first token, which has no prediction"""
    byte_lengths: npt.NDArray[np.int32]
    """[T] of the text: a space that the tokenizer puts before it is none of them; special tokens cover 0"""
    kinds: npt.NDArray[np.uint8]
    """TokenKind: special tokens are no content"""


def score_texts(ensemble: EnsembleModel, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS) -> list[TextScore]:
    """The scores of each text; `batch_tokens` at once, padding included.

    Raises UserError for a text that the shared tokens can't spell.
    """
    view = byte_view(ensemble.tokenizer.backend_tokenizer)
    ids = [np.array(ensemble.ids(text), np.int32) for text in texts]
    logprobs = score_ids(ensemble, ids, batch_tokens)
    kinds = [np.where(view.special[row], TokenKind.TEMPLATE, TokenKind.CONTENT).astype(np.uint8) for row in ids]
    lengths = [_byte_lengths(view, row, text) for row, text in zip(ids, texts, strict=True)]
    return list(map(TextScore, ids, logprobs, lengths, kinds))


def _byte_lengths(view: ByteView, ids: Ids, text: str) -> npt.NDArray[np.int32]:
    """The bytes that each token covers of the text, or spells, where the tokenizer takes it for another text."""
    is_content = ~view.special[ids]
    content = ids[is_content]
    spans = token_spans(view, content, np.isin(content, list(view.added)), text.encode())
    lengths = np.zeros(len(ids), np.int32)
    lengths[is_content] = spans.ends - spans.starts if spans else view.lengths[content]
    return lengths


def text_bits_per_byte(scores: Sequence[TextScore]) -> float:
    """Over the content tokens that have a prediction, and the bytes that those cover."""
    columns = zip(*((score.logprobs, score.byte_lengths, score.kinds) for score in scores), strict=True)
    logprobs, lengths, kinds = (np.concatenate(column) for column in columns)
    return bits_per_byte(logprobs, lengths, kinds)


def score_ids(
    ensemble: EnsembleModel, rows: Sequence[Ids], batch_tokens: int = BATCH_TOKENS
) -> list[npt.NDArray[np.float32]]:
    """[T] of each row of the lead's ids, NaN for its first token; −∞ for a token that is not shared."""
    windows = Windows.of(length_in(ensemble.config.to_dict()), None, None)
    begins = ensemble.tokenizer.bos_token_id
    parts = [part for k, ids in enumerate(rows) for part in windows.rows(k, ids, bool(len(ids)) and ids[0] == begins)]
    scores = [np.full(len(ids), np.nan, np.float32) for ids in rows]
    for part, found in zip(parts, score_rows(ensemble, parts, batch_tokens), strict=True):
        end = part.first + part.scored
        scores[part.example][end - len(found.logprobs) : end] = found.logprobs
    return scores


class Predicted(NamedTuple):
    """Of the tokens that a row scores, those that have a prediction in it."""

    logprobs: npt.NDArray[np.float32]
    likeliest: npt.NDArray[np.bool_]
    """whether no token is likelier"""


@torch.inference_mode()
def score_rows(ensemble: EnsembleModel, rows: Sequence[Row], batch_tokens: int = BATCH_TOKENS) -> list[Predicted]:
    """The scores of each row."""
    order, budget = sorted(range(len(rows)), key=lambda k: -len(rows[k].ids)), Budget(batch_tokens)
    scores: dict[int, Predicted] = {}
    while len(scores) < len(rows):
        first = len(scores)
        batch = order[first : first + budget.rows(len(rows[order[first]].ids))]
        scores |= zip(batch, _score(ensemble, [rows[k] for k in batch]), strict=True)
    return [scores[k] for k in range(len(rows))]


def _score(ensemble: EnsembleModel, batch: Sequence[Row]) -> list[Predicted]:
    """Rows are padded on the left, so that what is wanted stands at their ends; the last token predicts nothing."""
    counts = [len(row.ids) - max(1, row.skipped) for row in batch]
    if not max(counts):
        return [Predicted(np.empty(0, np.float32), np.empty(0, bool)) for _ in batch]
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
    numbers = _predicted(ensemble, hidden, torch.from_numpy(np.concatenate(targets).astype(np.int64)))
    parts = zip(*(np.split(column, np.cumsum(counts)[:-1]) for column in numbers), strict=True)
    return [Predicted(*part) for part in parts]


def _predicted(ensemble: EnsembleModel, hidden: Sequence[Tensor], targets_N: Tensor) -> Predicted:
    places_V = torch.full((ensemble.config.vocab_size,), -1)
    places_V[ensemble.shared_L.cpu()] = torch.arange(len(ensemble.shared_L))
    places_N = places_V[targets_N]
    logprobs_N, likeliest_N, done = torch.empty(len(targets_N)), torch.empty(len(targets_N), dtype=torch.bool), 0
    for logprobs_PL in ensemble.pieces(hidden, ensemble.device):
        piece = slice(done, done + len(logprobs_PL))
        places_P = places_N[piece].to(logprobs_PL.device)
        found_P = logprobs_PL.gather(-1, places_P.clamp(min=0)[:, None]).squeeze(-1)
        logprobs_N[piece] = found_P.masked_fill(places_P < 0, -torch.inf)
        likeliest_N[piece] = logprobs_PL.argmax(-1) == places_P
        done = piece.stop
    return Predicted(logprobs_N.numpy(), likeliest_N.numpy())
