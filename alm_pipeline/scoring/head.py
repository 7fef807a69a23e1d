"""The output head without a dense log-softmax: a few numbers per position, from pieces of the vocabulary.

Shapes: N positions, H hidden width, V vocabulary rows, P rows of a piece, K boundary tokens, R ranks, L listed tokens.
Each hidden state gives the log-probability of the observed next token, the log-probability that the next token is a
boundary token and, on request, the entropy, the likeliest tokens, and the probabilities of listed tokens. Logits exist
for one piece of the vocabulary at a time, in float32. Their maxima and sums are carried from piece to piece (the online
softmax of Milakov and Gimelshein 2018), and the backward pass computes the logits again. The pieces are of the
vocabulary and not of the positions, so that each row of the weight is read once, which is the main cost of a large
vocabulary. A piece contains either only boundary tokens or none. The sums of both groups are kept apart, so that a
small one is not lost beside a large one. A layer that is not linear computes all rows at once, so it works on pieces of
the positions.

Nothing waits for the device within a piece, so a GPU is never idle between pieces. There, the size of the pieces is
measured, and so is whether a Triton kernel reads them or a library computes both halves of the vocabulary (`backends`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alm_pipeline.models.output_head import Head, LayerHead, at_least_float32
from alm_pipeline.scoring.backends import choice, halves
from alm_pipeline.scoring.backends.choice import Way

_PIECE_ELEMENTS = choice.PROCESSOR_ELEMENTS
# larger pieces have a multiple of this many rows: products of other widths take a tenth longer on a processor
_PIECE_MULTIPLE = 128
# larger, because every piece of positions computes a gradient of the whole layer
_LAYER_PIECE_ELEMENTS = 2**25

# e^-80 is just above the smallest float32
_LEAST_LOG_REST = -80.0
_LOG2_E = 1 / math.log(2)


class ListedTokens(NamedTuple):
    """A few tokens at each position, whose probabilities are asked for."""

    ids_NL: Tensor
    """each at most once per position; −1: no token"""
    given_boundary: bool = False
    """the rest of the probability is asked of the boundary tokens alone; the listed tokens are among them"""


class NextTokenNumbers(NamedTuple):
    """The numbers of the next token at each position, in float32 or better; logarithms and entropies in nats."""

    target_logprobs_N: Tensor
    """log p(target); −∞ if the target is a padding row"""
    boundary_logprobs_N: Tensor
    """log Σ p over the boundary tokens; −∞ if there are none"""
    entropy_N: Tensor | None
    """−Σ p log p"""
    top_logprobs_NR: Tensor | None
    """largest first; without gradient"""
    top_ids_NR: Tensor | None
    """any of equally likely tokens"""
    listed_logprobs_NL: Tensor | None = None
    """log p of the listed tokens; −∞ where none is listed"""
    unlisted_logprobs_N: Tensor | None = None
    """log Σ p over the other tokens, or the other boundary tokens; −∞ if there are none"""


def token_and_boundary_logprobs(
    hidden_NH: Tensor, targets_N: Tensor, head: Head | LayerHead, boundary_ids_K: Tensor
) -> tuple[Tensor, Tensor]:
    """([N], [N]) float32: log p(target | position), and log Σ_{k ∈ boundary} p(k | position), as `next_token`."""
    numbers = next_token(hidden_NH, targets_N, head, boundary_ids_K)
    return numbers.target_logprobs_N, numbers.boundary_logprobs_N


def next_token(
    hidden_NH: Tensor,
    targets_N: Tensor,
    head: Head | LayerHead,
    boundary_ids_K: Tensor,
    *,
    entropy: bool = False,
    top: int = 0,
    listed: ListedTokens | None = None,
) -> NextTokenNumbers:
    """Return the numbers of each position's next token; on request with the entropy and the `top` likeliest tokens.

    With `listed`, also with the probabilities of these tokens, and of all others together: a sum of its own, so that it
    is exact where it is small.

    Differentiable once with respect to the hidden states and the head's parameters. No log-probability is above 0.
    With a bfloat16 head, logits and their gradients are rounded to bfloat16 as in a dense computation (logits of
    magnitude 8 are off by up to 0.03); all sums over the vocabulary are in float32.
    """
    hidden_NH = hidden_NH.to(head.dtype)
    if isinstance(head, LayerHead):
        top = min(top, head.vocabulary)
        return _layer_numbers(hidden_NH, targets_N, head, boundary_ids_K, entropy, top, listed)
    return HeadCall(hidden_NH, targets_N, head, _Order.of(head, boundary_ids_K), entropy, top, listed).numbers()


class NextTokens:
    """`next_token` for many calls with one fixed head: its rows are gathered once, and not in every call.

    It keeps a copy of a linear head, with the boundary tokens first.
    """

    def __init__(self, head: Head | LayerHead, boundary_ids_K: Tensor) -> None:
        self.head, self.boundary_ids_K = head, boundary_ids_K
        if isinstance(head, Head):
            self._sort(head)

    def _sort(self, head: Head) -> None:
        order = _Order.of(head, self.boundary_ids_K)
        padding = torch.arange(head.vocabulary, len(head.weight_VH), device=head.device)
        self._ids_V = torch.cat([order.ids_V, padding])
        self._places_V = self._ids_V.argsort()
        self.boundary_ids_K = torch.arange(order.boundary, device=head.device)
        bias_V = None if head.bias_V is None else head.bias_V[self._ids_V]
        self.head = replace(head, weight_VH=head.weight_VH[self._ids_V], bias_V=bias_V)
        # kept, since to make it waits for the device
        self._order = _Order.of(self.head, self.boundary_ids_K)

    def __call__(
        self, hidden_NH: Tensor, targets_N: Tensor, *, entropy: bool = False, top: int = 0
    ) -> NextTokenNumbers:
        if isinstance(self.head, LayerHead):
            return next_token(hidden_NH, targets_N, self.head, self.boundary_ids_K, entropy=entropy, top=top)
        places_N, hidden_NH = self._places_V[targets_N], hidden_NH.to(self.head.dtype)
        numbers = HeadCall(hidden_NH, places_N, self.head, self._order, entropy, top).numbers()
        if numbers.top_ids_NR is None:
            return numbers
        return numbers._replace(top_ids_NR=self._ids_V[numbers.top_ids_NR])


@dataclass(frozen=True)
class HeadCall:
    """What is asked of a linear head."""

    hidden_NH: Tensor
    """in the head's dtype"""
    targets_N: Tensor
    head: Head
    order: "_Order"
    entropy: bool = False
    top: int = 0
    listed: ListedTokens | None = None

    @classmethod
    def of(
        cls,
        hidden_NH: Tensor,
        targets_N: Tensor,
        head: Head,
        boundary_ids_K: Tensor,
        *,
        entropy: bool = False,
        top: int = 0,
    ) -> "HeadCall":
        """Return what `next_token` asks."""
        return cls(hidden_NH, targets_N, head, _Order.of(head, boundary_ids_K), entropy, top)

    def numbers(self) -> NextTokenNumbers:
        return self.numbers_by(self._way())

    def numbers_by(self, way: Way) -> NextTokenNumbers:
        if way.kind in halves.LIBRARIES:
            return NextTokenNumbers(*self._by_library(way), None, None, None)
        elements = choice.piece_elements(self.head.device, way.elements)
        numbers: tuple[Tensor, ...] = _LinearNumbers.apply(  # type: ignore[no-untyped-call]
            self.hidden_NH,
            self.head.weight_VH,
            self.head.bias_V,
            self.targets_N,
            self.head,
            self.order,
            way._replace(elements=elements),
            self.entropy,
            min(self.top, self.head.vocabulary),
            self.listed,
        )
        return NextTokenNumbers(*numbers)

    def _by_library(self, way: Way) -> tuple[Tensor, Tensor]:
        order, loss = self.order, halves.LIBRARIES[way.kind].loss
        sorted_ids_V = None if order.is_heads_own else order.ids_V
        return halves.token_and_boundary(
            loss, self.hidden_NH, self.head, sorted_ids_V, order.boundary, order.places_V[self.targets_N]
        )

    def _way(self) -> Way:
        """Return how the numbers are computed here. Only on a GPU something is measured."""
        is_device = self.head.device.type == "cuda"
        default = Way("pieces", choice.DEVICE_ELEMENTS[1] if is_device else _PIECE_ELEMENTS)
        if kind := choice.named_kind():
            return default._replace(kind=kind) if not self.problem(kind) else default
        if not is_device or self.top or self.listed or type(self.head.weight_VH) not in (Tensor, torch.nn.Parameter):
            return default
        key = self._key()
        if way := choice.remembered(key):
            return way
        return self._measured_way(key) if len(self.hidden_NH) >= choice.MEASURED_POSITIONS else default

    def problem(self, kind: choice.Kind) -> str:
        """Return why a way can't compute this; "" if it can."""
        if kind == "pieces":
            return ""
        if self.top or self.listed or not len(self.hidden_NH):
            return "it gives no likeliest and no listed tokens"
        if kind == "triton":
            return choice.triton_problem(self.head.device, self.head.dtype)
        return "it gives no entropy" if self.entropy else halves.LIBRARIES[kind].problem(self.head)

    def _needed_gradients(self) -> list[bool]:
        tensors = self.hidden_NH, self.head.weight_VH, self.head.bias_V
        return [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]

    def _key(self) -> str:
        """What decides how long each way takes, and which ways there are."""
        head, needed = self.head, self._needed_gradients()
        settings = {"bias": head.bias_V is not None, "cap": head.softcap, "scale": head.scale, "entropy": self.entropy}
        parts = [
            torch.cuda.get_device_name(head.device),
            f"torch {torch.__version__}",
            str(head.dtype).removeprefix("torch."),
            f"{head.vocabulary:,} × {head.weight_VH.shape[1]:,} of which {self.order.boundary:,} boundary tokens",
            *(f"{name} {value}" for name, value in settings.items() if value not in (False, None, 1.0)),
            "forward and backward" if any(needed) else "forward",
        ]
        return ", ".join(parts)

    def _measured_way(self, key: str) -> Way:
        kinds: list[choice.Kind] = ["triton", "torch", "liger"]
        unable: dict[str, str] = {kind: problem for kind in kinds if (problem := self.problem(kind))}
        ways = [
            Way(kind, elements)
            for kind in ("pieces", *(kind for kind in kinds if kind not in unable))
            for elements in (choice.DEVICE_ELEMENTS if kind in ("pieces", "triton") else (0,))
        ]
        trial = self._trial(4 * choice.MEASURED_POSITIONS)
        candidates = {way: partial(trial._timed, way) for way in ways}
        return choice.choose(key, candidates, unable, len(trial.hidden_NH), self.head.dtype)

    def _trial(self, positions: int) -> "HeadCall":
        """Return the same for the first positions, with leaves of its own for gradients."""
        hidden, weight, bias = (
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(
                (self.hidden_NH[:positions], self.head.weight_VH, self.head.bias_V),
                self._needed_gradients(),
                strict=True,
            )
        )
        assert hidden is not None
        assert weight is not None
        head = replace(self.head, weight_VH=weight, bias_V=bias)
        return replace(self, hidden_NH=hidden, targets_N=self.targets_N[:positions], head=head)

    def _timed(self, way: Way) -> tuple[Tensor, Tensor]:
        """Compute both numbers, and the gradients of their sum if any are needed."""
        numbers = self.numbers_by(way)
        tensors = self.hidden_NH, self.head.weight_VH, self.head.bias_V
        if leaves := [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]:
            torch.autograd.grad((numbers.target_logprobs_N + numbers.boundary_logprobs_N).sum(), leaves)
        return numbers.target_logprobs_N.detach(), numbers.boundary_logprobs_N.detach()


class _LinearNumbers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        order: "_Order",
        way: Way,
        entropy: bool,
        top: int,
        listed: ListedTokens | None,
    ) -> tuple[Tensor | None, ...]:
        places_NL = None if listed is None else order.places_V[listed.ids_NL.clamp(min=0)].where(listed.ids_NL >= 0, -1)
        boundary, others = (_Sums.none(hidden_NH, entropy) for _ in range(2))
        selected = _SelectedLogits(hidden_NH, order.places_V[targets_N], places_NL, top)
        for rows in order.pieces(len(hidden_NH), way.elements):
            group = boundary if rows.start < order.boundary else others
            if way.kind == "triton":
                _add_by_triton(head, head.outputs(hidden_NH, order.rows(rows)), group, selected, rows.start)
                continue
            logits_NP = head.logits(hidden_NH, order.rows(rows))
            selected.update(logits_NP, rows)
            group.add(logits_NP, selected.listed_places)
        with_rest = (boundary,) if listed and listed.given_boundary else (boundary, others)
        numbers = _numbers(boundary, others, selected, order, with_rest)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        # copies, because an output that its own backward pass holds is never freed
        copies = [None if number is None else number.clone() for number in (*numbers[1:3], numbers[6])]
        ctx.head, ctx.order, ctx.selected, ctx.state = head, order, selected.places, (boundary, others, *copies)
        ctx.rest_of_boundary, ctx.way = len(with_rest) == 1, way
        ctx.mark_non_differentiable(*(tensor for tensor in numbers[3:5] if tensor is not None))
        return tuple(numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        grad_hidden_NH = torch.zeros_like(at_least_float32(hidden_NH)) if ctx.needs_input_grad[0] else None
        # zero for padding rows
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
        slopes = _slopes(*ctx.state[:4], *grads[:3])
        if ctx.state[4] is not None:
            slopes = _with_listed(slopes, ctx.state, grads[5], grads[6], boundary_only=ctx.rest_of_boundary)
        selected_grads = _SelectedGrads(ctx.selected, grads[0], grads[5])
        for rows in ctx.order.pieces(len(hidden_NH), ctx.way.elements):
            ids_P, slope = ctx.order.rows(rows), slopes[rows.start >= ctx.order.boundary]
            if ctx.way.kind == "triton":
                grad_NP = _gradient_by_triton(ctx.head, ctx.head.outputs(hidden_NH, ids_P), slope, selected_grads, rows)
            else:
                grad_NP = slope.gradient(ctx.head.logits(hidden_NH, ids_P), ctx.head, rows, selected_grads)
            if grad_bias_V is not None:
                grad_bias_V[ids_P] = at_least_float32(grad_NP).sum(0).to(bias_V.dtype)
            grad_NP = grad_NP.to(weight_VH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH += grad_NP @ weight_VH[ids_P]
            if grad_weight_VH is not None:
                grad_weight_VH[ids_P] = grad_NP.T @ hidden_NH
        grad_hidden = None if grad_hidden_NH is None else grad_hidden_NH.to(hidden_NH.dtype)
        return grad_hidden, grad_weight_VH, grad_bias_V, *(None for _ in range(7))


def _add_by_triton(head: Head, outputs_NP: Tensor, group: "_Sums", selected: "_SelectedLogits", first: int) -> None:
    """As `_SelectedLogits.update` and `_Sums.add`, reading the piece once."""
    from alm_pipeline.scoring.backends.triton_pieces import add_piece  # only where Triton is installed

    sums = (group.highest_N, group.total_N, group.spread_N)
    add_piece(outputs_NP, head.scale, head.softcap, sums, selected.target_N, selected.places.target_N, first)


def _gradient_by_triton(
    head: Head, outputs_NP: Tensor, slope: "_Slope", grads: "_SelectedGrads", rows: slice
) -> Tensor:
    """As `_Slope.gradient`, in place of the layer's outputs, reading and writing them once."""
    from alm_pipeline.scoring.backends.triton_pieces import logits_to_gradient

    factors = (slope.highest_N, slope.level_N, slope.spread_N)
    target_grad_N = grads.target_N.contiguous()
    logits_to_gradient(outputs_NP, head.scale, head.softcap, factors, target_grad_N, grads.places.target_N, rows.start)
    return outputs_NP


@dataclass(frozen=True)
class _Order:
    """The vocabulary with the boundary tokens first, so that a piece of it contains only boundary tokens or none."""

    ids_V: Tensor
    """the tokens that exist, in this order"""
    places_V: Tensor
    """the place of each row of the head in this order; −1: padding"""
    boundary: int
    """the number of boundary tokens"""
    is_heads_own: bool
    """the head's rows are already in this order, so that a piece is not a copy"""

    @classmethod
    def of(cls, head: Head, boundary_ids_K: Tensor) -> "_Order":
        places_V = torch.full(head.weight_VH.shape[:1], -1, device=head.device)
        is_boundary_V = places_V.index_fill(0, boundary_ids_K, 1)[: head.vocabulary]
        ids_V = is_boundary_V.argsort(descending=True, stable=True)
        places_V[ids_V] = torch.arange(len(ids_V), device=head.device)
        is_leading_V = is_boundary_V.cummin(0).values
        boundary, leading = torch.stack([(marks_V > 0).sum() for marks_V in (is_boundary_V, is_leading_V)]).tolist()
        return cls(ids_V, places_V, boundary, boundary == leading)

    def rows(self, piece: slice) -> Tensor | slice:
        """Return the rows of the head at a range of places."""
        return piece if self.is_heads_own else self.ids_V[piece]

    def pieces(self, positions: int, elements: int) -> Iterator[slice]:
        """Yield ranges of places whose logits of all positions are at most `elements`, or a single place."""
        length = max(1, elements // max(1, positions))
        length = length // _PIECE_MULTIPLE * _PIECE_MULTIPLE or length
        for first, end in ((0, self.boundary), (self.boundary, len(self.ids_V))):
            for start in range(first, end, length):
                yield slice(start, min(start + length, end))


@dataclass
class _Sums:
    """Maximum and sums over the pieces of one group so far; a token's weight is exp(logit − highest)."""

    highest_N: Tensor
    total_N: Tensor
    """sum of the weights"""
    spread_N: Tensor | None
    """sum of weight · log(weight), for entropies"""
    unlisted_N: Tensor
    """sum of the weights of unlisted tokens, if some are listed"""

    @classmethod
    def none(cls, hidden_NH: Tensor, entropy: bool) -> "_Sums":
        zeros_N = at_least_float32(hidden_NH.new_zeros(len(hidden_NH)))
        # not −∞, because ∞ − ∞ is NaN
        lowest_N = torch.full_like(zeros_N, torch.finfo(zeros_N.dtype).min)
        # copies, because a kernel adds in place
        return cls(lowest_N, zeros_N, zeros_N.clone() if entropy else None, zeros_N.clone())

    def add(self, logits_NP: Tensor, listed: "_ListedPlaces | None" = None) -> None:
        """Add a piece. Overwrites the logits."""
        rise_N = self.highest_N - (highest_N := torch.maximum(self.highest_N, logits_NP.amax(-1)))
        weights_NP, shrink_N = _weights(logits_NP, highest_N), rise_N.exp()
        if self.spread_N is not None:
            moved_N = (self.spread_N + rise_N * self.total_N) * shrink_N
            self.spread_N = moved_N + torch.xlogy(weights_NP, weights_NP).sum(-1)
        self.highest_N, self.total_N = highest_N, self.total_N * shrink_N + weights_NP.sum(-1)
        if listed is not None:
            # a weight minus itself is 0: no other sum loses what is small
            weights_NP.scatter_add_(-1, listed.within_NL, -listed.values(weights_NP))
            self.unlisted_N = self.unlisted_N * shrink_N + weights_NP.sum(-1)

    def entropy(self) -> Tensor:
        """[N] the entropy within the group; 0 if the group is empty."""
        assert self.spread_N is not None
        return (self.total_N.log() - self.spread_N / self.total_N).where(self.total_N > 0, 0)


def _weights(logits_NP: Tensor, highest_N: Tensor) -> Tensor:
    """exp(logit − highest), in place."""
    difference_NP = logits_NP.sub_(highest_N[:, None])
    if difference_NP.device.type == "cpu":
        # on some processors PyTorch's `exp_` takes four times as long as `exp2_`
        return difference_NP.mul_(_LOG2_E).exp2_()
    return difference_NP.exp_()


class _ListedPlaces(NamedTuple):
    """Where the listed tokens are in a piece."""

    inside_NL: Tensor
    within_NL: Tensor
    """any place of the piece for a token outside"""

    def values(self, numbers_NP: Tensor) -> Tensor:
        """[N, L] the piece's numbers of the listed tokens, 0 for those outside."""
        return numbers_NP.gather(-1, self.within_NL).mul_(self.inside_NL)


class _SelectedPlaces(NamedTuple):
    """The places of single tokens in the order of the vocabulary; −1: padding, or none."""

    target_N: Tensor
    listed_NL: Tensor | None

    def listed_in(self, rows: slice) -> _ListedPlaces | None:
        return None if self.listed_NL is None else _ListedPlaces(*_within(self.listed_NL, rows))


class _SelectedLogits:
    """The logits of the targets and of the listed tokens, and the highest logits, from the pieces so far."""

    def __init__(self, hidden_NH: Tensor, places_N: Tensor, places_NL: Tensor | None, top: int) -> None:
        self.places, self.top = _SelectedPlaces(places_N, places_NL), top
        empty_N = at_least_float32(hidden_NH.new_empty(len(hidden_NH)))
        self.target_N = torch.full_like(empty_N, -torch.inf)
        self.listed_NL = None if places_NL is None else empty_N.new_full(places_NL.shape, -torch.inf)
        self.listed_places: _ListedPlaces | None = None
        self.top_NR, self.top_places_NR = empty_N.new_empty(len(empty_N), 0), places_N.new_empty(len(empty_N), 0)

    def update(self, logits_NP: Tensor, rows: slice) -> None:
        inside_N, within_N = _within(self.places.target_N, rows)
        self.target_N = torch.where(inside_N, logits_NP.gather(-1, within_N[:, None]).squeeze(-1), self.target_N)
        self.listed_places = listed = self.places.listed_in(rows)
        if listed is not None and self.listed_NL is not None:
            self.listed_NL = torch.where(listed.inside_NL, logits_NP.gather(-1, listed.within_NL), self.listed_NL)
        if self.top:
            piece_NR, places_NR = logits_NP.topk(min(self.top, logits_NP.shape[-1]), -1)
            merged_NR = torch.cat([self.top_NR, piece_NR], -1)
            merged_places_NR = torch.cat([self.top_places_NR, places_NR + rows.start], -1)
            self.top_NR, order_NR = merged_NR.topk(min(self.top, merged_NR.shape[-1]), -1)
            self.top_places_NR = merged_places_NR.gather(-1, order_NR)


def _within(places_N: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return whether each place is in the piece, and its index there (any index for places outside)."""
    inside_N = (places_N >= rows.start) & (places_N < rows.stop)
    return inside_N, (places_N - rows.start).clamp(0, rows.stop - rows.start - 1)


def _numbers(
    boundary: _Sums, others: _Sums, selected: _SelectedLogits, order: _Order, with_rest: tuple[_Sums, ...]
) -> NextTokenNumbers:
    # differences of maxima first: two large logarithms would lose the difference to rounding
    lead_N = (others.highest_N - boundary.highest_N) + (others.total_N.log() - boundary.total_N.log())
    boundary_N = -torch.nn.functional.softplus(lead_N)
    highest_N = torch.maximum(boundary.highest_N, others.highest_N)
    total_N = sum(sums.total_N * (sums.highest_N - highest_N).exp() for sums in (boundary, others))
    log_total_N = torch.as_tensor(total_N).log()
    # the target's logit is part of the rounded sums, and the objective needs log-probabilities of at most 0
    target_N = (selected.target_N - highest_N - log_total_N).clamp_(max=0)
    entropy_N = None if boundary.spread_N is None else _entropy(boundary, others, boundary_N)
    numbers = NextTokenNumbers(target_N, boundary_N, entropy_N, None, None)
    if selected.listed_NL is not None:
        listed_NL = (selected.listed_NL - highest_N[:, None] - log_total_N[:, None]).clamp_(max=0)
        parts = [sums.unlisted_N.log() + (sums.highest_N - highest_N) for sums in with_rest]
        rest_N = torch.stack(parts).logsumexp(0).sub_(log_total_N).clamp_(max=0)
        numbers = numbers._replace(listed_logprobs_NL=listed_NL, unlisted_logprobs_N=rest_N)
    if not selected.top:
        return numbers
    ranked_NR = selected.top_NR - highest_N[:, None] - log_total_N[:, None]
    return numbers._replace(top_logprobs_NR=ranked_NR, top_ids_NR=order.ids_V[selected.top_places_NR])


def _entropy(boundary: _Sums, others: _Sums, boundary_N: Tensor) -> Tensor:
    """[N] the entropy of the choice of group, plus the expected entropy within the group."""
    chances = boundary_N.exp(), -torch.expm1(boundary_N)
    parts = [
        chance_N * sums.entropy() - torch.xlogy(chance_N, chance_N)
        for sums, chance_N in zip((boundary, others), chances, strict=True)
    ]
    return parts[0] + parts[1]


class _SelectedGrads(NamedTuple):
    """The gradients of the log-probabilities of single tokens, and where these are."""

    places: _SelectedPlaces
    target_N: Tensor
    listed_NL: Tensor | None


@dataclass(frozen=True)
class _Slope:
    """The gradient of a group's logits, before scale and cap: the weight times a number, or two with the entropy."""

    highest_N: Tensor
    level_N: Tensor
    spread_N: Tensor | None
    listed_level_N: Tensor | None = None
    """the level of listed tokens, if there are some"""

    def gradient(self, logits_NP: Tensor, head: Head, rows: slice, grads: _SelectedGrads) -> Tensor:
        """[N, P] the gradient of the layer's own outputs. Overwrites the logits."""
        cap_NP = None if head.softcap is None else 1 - (logits_NP / head.softcap) ** 2
        grad_NP = _weights(logits_NP, self.highest_N)
        spread_NP = None if self.spread_N is None else torch.xlogy(grad_NP, grad_NP).mul_(self.spread_N[:, None])
        listed = grads.places.listed_in(rows)
        if listed is not None:
            # not a difference of levels, which are as far apart as the rest is small
            listed_NL = listed.values(grad_NP)
            grad_NP.scatter_add_(-1, listed.within_NL, -listed_NL)
        grad_NP.mul_(self.level_N[:, None])
        if spread_NP is not None:
            grad_NP.add_(spread_NP)
        inside_N, within_N = _within(grads.places.target_N, rows)
        grad_NP.scatter_add_(-1, within_N[:, None], (grads.target_N * inside_N)[:, None])
        if listed is not None and grads.listed_NL is not None and self.listed_level_N is not None:
            grad_NL = listed_NL * self.listed_level_N[:, None] + grads.listed_NL * listed.inside_NL
            grad_NP.scatter_add_(-1, listed.within_NL, grad_NL)
        grad_NP = grad_NP if cap_NP is None else grad_NP.mul_(cap_NP)
        return grad_NP if head.scale == 1.0 else grad_NP.mul_(head.scale)


def _slopes(
    boundary: _Sums,
    others: _Sums,
    boundary_N: Tensor,
    entropy_N: Tensor | None,
    grad_target_N: Tensor,
    grad_boundary_N: Tensor,
    grad_entropy_N: Tensor,
) -> tuple[_Slope, _Slope]:
    """Return the slopes of boundary tokens and of the others.

    With the group's probability P and p = P · weight / total, the gradient is the sum of g_target (onehot − p),
    g_boundary (p / P − p) for boundary tokens or −g_boundary p for the others, and −g_entropy p (log p + entropy).
    """
    # an impossible boundary has no gradient
    grad_boundary_N = grad_boundary_N.masked_fill(boundary_N == -torch.inf, 0)
    chance_N, rest_N = boundary_N.exp(), -torch.expm1(boundary_N)
    level_N = grad_boundary_N * rest_N - grad_target_N * chance_N
    other_N = -(grad_target_N + grad_boundary_N) * rest_N
    parts = ((boundary, chance_N, level_N), (others, rest_N, other_N))
    first, second = (_slope(*part, entropy_N, grad_entropy_N) for part in parts)
    return first, second


def _slope(sums: _Sums, chance_N: Tensor, level_N: Tensor, entropy_N: Tensor | None, grad_entropy_N: Tensor) -> _Slope:
    spread_N = None
    if entropy_N is not None:
        levels_N = torch.xlogy(chance_N, chance_N) + chance_N * (entropy_N - sums.total_N.log())
        level_N = level_N - grad_entropy_N * levels_N
        spread_N = -grad_entropy_N * chance_N / sums.total_N
    return _Slope(sums.highest_N, level_N / sums.total_N, spread_N)


def _with_listed(
    slopes: tuple[_Slope, _Slope], state: tuple[Any, ...], grad_NL: Tensor, grad_rest_N: Tensor, *, boundary_only: bool
) -> tuple[_Slope, _Slope]:
    """Add the gradients of listed tokens, g, and of the rest, h, to the slopes; the listed tokens' own g is left out.

    With the probability R of the rest, the gradient is the sum of g (onehot − p) and, for the tokens of the rest,
    h p / R, minus h p for all.
    """
    boundary, others, boundary_N, _, rest_N = state
    # the gradient of an impossible rest, or of one that is lost in float32, is 0
    grad_rest_N = grad_rest_N.masked_fill(rest_N < _LEAST_LOG_REST, 0)
    down_N = grad_NL.sum(-1) + grad_rest_N
    changed = []
    for slope, sums, chance_N in zip(
        slopes, (boundary, others), (boundary_N.exp(), -torch.expm1(boundary_N)), strict=True
    ):
        share_N = chance_N / sums.total_N
        up_N = grad_rest_N * (share_N.log() - rest_N.clamp(min=_LEAST_LOG_REST)).exp()
        level_N = slope.level_N - down_N * share_N
        rest_level_N = level_N if boundary_only and sums is others else level_N + up_N
        changed.append(replace(slope, level_N=rest_level_N, listed_level_N=level_N))
    first, second = changed
    return first, second


def _layer_numbers(
    hidden_NH: Tensor,
    targets_N: Tensor,
    head: LayerHead,
    boundary_ids_K: Tensor,
    entropy: bool,
    top: int,
    listed: ListedTokens | None,
) -> NextTokenNumbers:
    """Compute dense logits for a few positions at a time; the backward pass computes them again."""
    length = max(1, _LAYER_PIECE_ELEMENTS // head.vocabulary)
    boundary_ids_K = boundary_ids_K[boundary_ids_K < head.vocabulary]
    hidden, targets = hidden_NH.split(length), targets_N.split(length)
    lists = (
        [listed._replace(ids_NL=ids_PL) for ids_PL in listed.ids_NL.split(length)] if listed else [None] * len(hidden)
    )
    pieces = [
        checkpoint(_dense_numbers, hidden_PH, targets_P, head, boundary_ids_K, entropy, top, part, use_reentrant=False)
        for hidden_PH, targets_P, part in zip(hidden, targets, lists, strict=True)
    ]
    columns: list[Any] = [None if parts[0] is None else torch.cat(parts) for parts in zip(*pieces, strict=True)]
    return NextTokenNumbers(*columns)


def _dense_numbers(
    hidden_NH: Tensor,
    targets_N: Tensor,
    head: LayerHead,
    boundary_ids_K: Tensor,
    entropy: bool,
    top: int,
    listed: ListedTokens | None,
) -> NextTokenNumbers:
    logprobs_NV = head.logits(hidden_NH).log_softmax(-1)
    inside_N, places_N = _within(targets_N, slice(0, head.vocabulary))
    at_place_N = logprobs_NV.gather(-1, places_N[:, None]).squeeze(-1)
    target_N = torch.where(inside_N, at_place_N, -torch.inf)
    boundary_N = logprobs_NV.index_select(-1, boundary_ids_K).logsumexp(-1).clamp(max=0)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1) if entropy else None
    top_NR, top_ids_NR = logprobs_NV.detach().topk(top, -1) if top else (None, None)
    numbers = NextTokenNumbers(target_N, boundary_N, entropy_N, top_NR, top_ids_NR)
    return numbers if listed is None else numbers._replace(**_dense_listed(logprobs_NV, listed, boundary_ids_K))


def _dense_listed(logprobs_NV: Tensor, listed: ListedTokens, boundary_ids_K: Tensor) -> dict[str, Tensor]:
    """Return the last two numbers of `NextTokenNumbers`."""
    inside_NL, within_NL = _within(listed.ids_NL, slice(0, logprobs_NV.shape[-1]))
    listed_NL = logprobs_NV.gather(-1, within_NL).where(inside_NL, -torch.inf)
    counts_NV = torch.zeros_like(logprobs_NV, dtype=torch.int32).scatter_add_(-1, within_NL, inside_NL.int())
    is_rest_NV = counts_NV == 0
    if listed.given_boundary:
        is_rest_NV &= is_rest_NV.new_zeros(is_rest_NV.shape[-1]).index_fill(0, boundary_ids_K, True)
    # of no token, the gradient of a logarithm of a sum would be NaN
    any_N = is_rest_NV.any(-1, keepdim=True)
    rest_NV = logprobs_NV.masked_fill(~is_rest_NV & any_N, -torch.inf)
    rest_N = rest_NV.logsumexp(-1).clamp(max=0).where(any_N.squeeze(-1), -torch.inf)
    return {"listed_logprobs_NL": listed_NL, "unlisted_logprobs_N": rest_N}
