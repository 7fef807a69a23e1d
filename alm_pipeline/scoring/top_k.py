"""The likeliest next tokens of a position, without a dense log-softmax. Shapes as in head.py; k is K here."""

import torch
from torch import Tensor

from alm_pipeline.scoring.head import Head


def top_logprobs(hidden_NH: Tensor, head: Head, k: int) -> tuple[Tensor, Tensor]:
    """([N, K] ids, [N, K] float32 log-probabilities) of the k likeliest next tokens, likeliest first."""
    positions = len(hidden_NH)
    ids_NK = torch.zeros(positions, 0, dtype=torch.int64, device=head.weight_VH.device)
    logits_NK = torch.zeros(positions, 0, device=head.weight_VH.device)
    total_N = torch.full((positions,), -torch.inf, device=head.weight_VH.device)
    for rows in head.pieces(positions):
        logits_NP = head.logits(hidden_NH, rows)
        total_N = torch.logaddexp(total_N, logits_NP.logsumexp(-1))
        piece = logits_NP.topk(min(k, logits_NP.shape[-1]), -1)
        both_NK = torch.cat([logits_NK, piece.values], -1)
        best = both_NK.topk(min(k, both_NK.shape[-1]), -1)
        ids_NK = torch.cat([ids_NK, piece.indices + rows.start], -1).gather(-1, best.indices)
        logits_NK = best.values
    return ids_NK, (logits_NK - total_N[:, None]).clamp_(max=0)
