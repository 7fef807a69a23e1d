"""Sampling with random numbers of each text's own, so that a text does not depend on the texts beside it.

A token is drawn by one uniform number: the first token at which the cumulative probability exceeds it. The numbers of a
text are made of the seed, the round and the prompt's id alone.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessor

from alm_pipeline.config import SamplingConfig


def uniforms(seed: int, round_: int, id_: str, count: int) -> npt.NDArray[np.float64]:
    """Return [count] numbers in [0, 1) that belong to a prompt in a round."""
    return np.random.Generator(np.random.Philox(key=_key(seed, round_, id_))).random(count)


def row_seed(seed: int, round_: int, id_: str) -> int:
    """Return the 31-bit seed that a request about a prompt has."""
    return _key(seed, round_, id_) & 0x7FFF_FFFF


def _key(seed: int, round_: int, id_: str) -> int:
    digest = hashlib.blake2b(f"{seed} {round_} {id_}".encode(), digest_size=16, person=b"rollouts")
    return int.from_bytes(digest.digest(), "big")


class SeededSampler(LogitsProcessor):
    """Chooses the next token of each row and leaves only that one possible, for a greedy generation.

    B rows, T tokens at most, V logits.
    """

    def __init__(self, sampling: SamplingConfig, uniforms_BT: npt.NDArray[np.float64], rows: int | None) -> None:
        """`rows` is the number of ids that are tokens (None: all V)."""
        self.sampling, self.uniforms_BT, self.rows = sampling, torch.from_numpy(uniforms_BT), rows
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms_B = self.uniforms_BT[:, self.step].to(scores.device)
        self.step += 1
        chosen_B = draw(scores[:, : self.rows], uniforms_B, self.sampling)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B[:, None], 0.0)


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return [B] tokens, each drawn by its uniform number; at temperature 0 the likeliest, of equals the first."""
    if not sampling.temperature:
        return logits_BV.argmax(1)
    # on Apple's GPUs there is no float64
    wide = torch.float32 if logits_BV.device.type == "mps" else torch.float64
    probabilities_BV = torch.softmax(logits_BV.to(wide) / sampling.temperature, 1)
    if sampling.top_k is not None or sampling.top_p < 1:
        probabilities_BV = _likeliest(probabilities_BV, sampling)
    sums_BV = probabilities_BV.cumsum(1)
    thresholds_B1 = uniforms_B.to(wide)[:, None] * sums_BV[:, -1:]
    chosen_B = torch.searchsorted(sums_BV, thresholds_B1, right=True)[:, 0]
    # a threshold that is rounded up to the sum belongs to the last token that has any probability
    last_B = (probabilities_BV > 0).to(torch.uint8).cumsum(1).argmax(1)
    return torch.minimum(chosen_B, last_B)


def _likeliest(probabilities_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the probabilities with zeros for all tokens but the likeliest, as `top_k` and `top_p` allow."""
    sorted_BV, order_BV = probabilities_BV.sort(dim=1, descending=True, stable=True)
    kept_BV = sorted_BV.cumsum(1) - sorted_BV < sampling.top_p
    kept_BV[:, 0] = True
    if sampling.top_k is not None:
        kept_BV[:, sampling.top_k :] = False
    return torch.zeros_like(probabilities_BV).scatter(
        1, order_BV, sorted_BV.where(kept_BV, torch.zeros_like(sorted_BV))
    )
