"""The ALM objective (arXiv 2503.20083, section 3) as pure functions of named tensors.

Shapes: N positions of a batch, C chunks of a batch. A chunk's log-likelihood is the sum of its tokens'
log-probabilities, debiased by the log-probability that a boundary token comes after its last token.
"""

from torch import Tensor

from alm_pipeline.config import Divergence
from alm_pipeline.objective.divergences import DIVERGENCES


def chunk_logprobs(
    token_logprobs_N: Tensor,
    boundary_logprobs_N: Tensor,
    chunk_of_token_N: Tensor,
    last_token_C: Tensor,
    *,
    debias: bool,
) -> Tensor:
    """[C] log-likelihoods of chunks. `chunk_of_token_N` is −1 for a token in no chunk.

    `token_logprobs_N[i]` is that of token i itself, `boundary_logprobs_N[i]` that of a boundary token after token i.
    """
    # tokens in no chunk go into one extra sum: selecting tokens would make the processor wait for the device
    inside_N, chunks = chunk_of_token_N >= 0, len(last_token_C)
    sums_C = token_logprobs_N.new_zeros(chunks + 1)
    sums_C = sums_C.index_add(
        0, chunk_of_token_N.where(inside_N, chunks), token_logprobs_N.where(inside_N, token_logprobs_N.new_zeros(()))
    )[:-1]
    return sums_C + boundary_logprobs_N[last_token_C] if debias else sums_C


def alm_loss(
    teacher_logprobs_C: Tensor,
    student_logprobs_C: Tensor,
    *,
    divergence: Divergence = "binary_ce",
    temperature: float = 100.0,
    count: Tensor | float | None = None,
) -> Tensor:
    """Return the sum of the chunks' divergences, divided by `count`: the number of chunks in the global batch.

    If `count` is None, the sum is divided by C. A batch without chunks has the loss 0, and all its gradients are 0.
    """
    values_C = DIVERGENCES[divergence](teacher_logprobs_C, student_logprobs_C, temperature)
    return values_C.sum() / _at_least_one(len(values_C) if count is None else count)


def sft_loss(token_logprobs_N: Tensor, predicted_N: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The negative log-likelihood of the predicted tokens in nats, summed and divided by `count`.

    `count` is the number of predicted tokens in the global batch (None: in this batch). Tokens that are not predicted
    may be NaN.
    """
    total = -token_logprobs_N.where(predicted_N, token_logprobs_N.new_zeros(())).sum()
    return total / _at_least_one(predicted_N.sum() if count is None else count)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1.0, count)
