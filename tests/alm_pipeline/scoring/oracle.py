"""The reference for the head: every number of the next token as loops over float64 scalars, and random cases."""

import torch
from torch import Tensor

from alm_pipeline.models.output_head import Head
from alm_pipeline.scoring.head import ListedTokens, NextTokenNumbers


def looped(hidden: Tensor, targets: Tensor, head: Head, boundary: Tensor, top: int = 0) -> NextTokenNumbers:
    """Differentiable; a padding row has probability 0, whatever its logit."""
    rows = head.vocabulary
    tokens, boundaries, entropies, ranked, ids = [], [], [], [], []
    for state, target in zip(hidden, targets.tolist(), strict=True):
        logits = [looped_logit(state, head, row) for row in range(rows)]
        total = log_sum_exp(logits)
        logprobs = [logit - total for logit in logits]
        tokens.append(logprobs[target] if target < rows else 0 * total - torch.inf)
        boundaries.append(log_sum_exp([logprobs[row] for row in boundary.tolist() if row < rows]))
        entropies.append(-sum((logprob.exp() * logprob for logprob in logprobs), torch.zeros((), dtype=torch.float64)))
        best = sorted(range(rows), key=lambda row: -logprobs[row].item())[:top]
        ids.append(torch.tensor(best, dtype=torch.int64))
        ranked.append(torch.stack([logprobs[row].detach() for row in best]) if best else torch.zeros(0))
    if not tokens:
        return NextTokenNumbers(
            hidden.sum(-1), hidden.sum(-1), hidden.sum(-1), hidden.new_zeros(0, top), targets.new_zeros(0, top)
        )
    return NextTokenNumbers(*map(torch.stack, (tokens, boundaries, entropies, ranked, ids)))


def looped_listed(hidden: Tensor, head: Head, boundary: Tensor, listed: ListedTokens) -> tuple[Tensor, Tensor]:
    """([N, L], [N]) log-probabilities of the listed tokens, and of all others or all other boundary tokens together."""
    tokens, rests, rows = [], [], range(head.vocabulary)
    for state, ids in zip(hidden, listed.ids_NL.tolist(), strict=True):
        logits = [looped_logit(state, head, row) for row in rows]
        total = log_sum_exp(logits)
        tokens.append([logits[id_] - total if id_ in rows else total.detach() * 0 - torch.inf for id_ in ids])
        asked = boundary.tolist() if listed.given_boundary else rows
        rests.append(log_sum_exp([logits[row] - total for row in rows if row in asked and row not in ids]))
    if not tokens:
        return hidden.new_zeros(listed.ids_NL.shape), hidden.new_zeros(0)
    return torch.stack([torch.stack(row) for row in tokens]), torch.stack(rests)


def random_listed(positions: int, rows: int, width: int, among: Tensor | None = None, seed: int = 0) -> ListedTokens:
    """Different tokens at each position, some of them beyond the rows, with gaps; `among`: only these."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.arange(rows) if among is None else among
    ids = torch.full((positions, width), -1)
    for row in ids:
        chosen = choices[torch.randperm(len(choices), generator=generator)][:width]
        row[torch.randperm(width, generator=generator)[: len(chosen)]] = chosen
    ids[torch.rand(ids.shape, generator=generator) < 0.3] = -1
    return ListedTokens(ids, given_boundary=among is not None)


def looped_logit(state: Tensor, head: Head, row: int) -> Tensor:
    logit = torch.zeros((), dtype=torch.float64)
    for width in range(len(state)):
        logit = logit + state[width] * head.weight_VH[row, width]
    if head.bias_V is not None:
        logit = logit + head.bias_V[row]
    logit = logit * head.scale
    return logit if head.softcap is None else head.softcap * torch.tanh(logit / head.softcap)


def log_sum_exp(values: list[Tensor]) -> Tensor:
    if not values:
        return torch.tensor(-torch.inf, dtype=torch.float64)
    highest = max(value.item() for value in values)
    return highest + sum(((value - highest).exp() for value in values), torch.zeros((), dtype=torch.float64)).log()


def random_case(
    positions: int,
    vocabulary: int,
    *,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    rows: int | None = None,
    boundary: int | None = None,
    width: int = 6,
) -> tuple[Tensor, Tensor, Head, Tensor]:
    """Hidden states, targets among the rows, a head, and some boundary tokens (None: a third of all)."""
    generator = torch.Generator().manual_seed(positions * 1000 + vocabulary)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    targets = torch.randint(rows or vocabulary, (positions,), generator=generator)
    count = max(1, vocabulary // 3) if boundary is None else boundary
    ids = torch.randperm(vocabulary, generator=generator)[:count].sort().values
    head = Head(random(vocabulary, width), random(vocabulary) if bias else None, scale, softcap, rows)
    return random(positions, width), targets, head, ids
