"""Scores tokens with a model: the log-probability of each token, and of a boundary token after it.

Shapes: B rows of a batch, T tokens of a row with padding, N positions that are scored, H hidden width, K likeliest
tokens. Only positions that are scored reach the head: no padding, and of a window's context only the last position.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.models.output_head import Head, LayerHead, check_output_head, hidden_states, input_device, output_head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import Advance
from alm_pipeline.scoring.backends.compiled import compile_layers
from alm_pipeline.scoring.batching import DEFAULT_TOKENS, BatchBudget, is_out_of_memory, weighted_groups
from alm_pipeline.scoring.finite import ScoreFault, first_fault_of_rows, why_not_finite
from alm_pipeline.scoring.head import NextTokens
from alm_pipeline.scoring.windows import Ids, WindowPlan, WindowRow
from storage.errors import UserError

Floats = npt.NDArray[np.float32]
_GROUP_BATCHES = 64
"""the number of batches whose examples are sorted by length together"""
_PROBE_LENGTH = 2048
"""the longest row with which the size of batches is found"""
_MEMORY_SHARE = 0.9
"""of a GPU's memory that batches may take: the rest is for what fragments it"""
# the precision of matrix products on a processor is a setting of the whole process, so replicas take turns
_processor = threading.Lock()


class TokenScores(NamedTuple):
    """The scores of an example of T tokens."""

    logprobs: Floats
    """[T]; NaN for the first token, which has no prediction, and finite for all others"""
    boundary_logprobs: Floats
    """[T] of a boundary token after each token; −∞ for all if the vocabulary has no boundary token"""
    top_ids: Ids
    """[T, K] the likeliest tokens after each token, likeliest first"""
    top_logprobs: Floats
    """[T, K]"""

    @classmethod
    def empty(cls, tokens: int, top_k: int) -> "TokenScores":
        floats = np.full(tokens, np.nan, np.float32), np.empty(tokens, np.float32)
        return cls(*floats, np.empty((tokens, top_k), np.int32), np.empty((tokens, top_k), np.float32))


class _Running(NamedTuple):
    """A batch whose numbers are on their way to the processor's memory."""

    numbers: tuple[Tensor, ...]
    """the fields of `TokenScores`, without the likeliest tokens if none are asked for"""
    copied: torch.cuda.Event | None

    def scores(self) -> TokenScores:
        """Return the numbers once they are there."""
        if self.copied:
            self.copied.synchronize()
        arrays = [number.numpy() for number in self.numbers]
        return TokenScores(*arrays, *TokenScores.empty(len(arrays[0]), 0)[len(arrays) :])


class Scorer:
    """Scores tokens with a model: the log-probability of each token, and of a boundary token after it."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: HeadVocabulary,
        config: ScoreConfig | None = None,
        tokenizer: LoadedTokenizer | None = None,
    ) -> None:
        """`tokenizer` spells a token in errors, and its name is the model's."""
        config, self._tokenizer = config or ScoreConfig(), tokenizer
        self.model, self.top_k, self.budget = (
            model.eval(),
            config.top_k,
            BatchBudget(config.batch_tokens or DEFAULT_TOKENS),
        )
        self._turn = threading.Lock()
        """held while examples are scored: a second thread reads and writes shards meanwhile"""
        self.windows = WindowPlan.of(context_length(model.config), config.window, config.context)
        self.head = _head(model, vocabulary.rows)
        check_output_head(model, self.head, self._hidden_states)
        self.next_tokens = NextTokens(self.head, vocabulary.boundary_ids_K.to(self.device))
        self.head = self.next_tokens.head
        self._batches_ahead = 1 if self.device.type == "cuda" else 0
        """the batches that are given to the device before the results of an earlier one are read"""
        self._may_grow = config.batch_tokens is None and self.device.type == "cuda"
        if config.compile:
            compile_layers(model)

    @property
    def device(self) -> torch.device:
        """The device of the head; the rest of the model may be on others."""
        return self.head.device

    @classmethod
    def load(cls, model: ModelReference, config: ScoreConfig, device: str | None = None) -> "Scorer":
        """Load a model with its own tokenizer, onto that device or spread by `config.device_map`."""
        loaded = model.load(config.dtype, device=device, device_map=config.device_map)
        return cls.of(loaded, model.tokenizer, config)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: LoadedTokenizer, config: ScoreConfig | None = None) -> "Scorer":
        """Raises UserError if the tokenizer is not the model's, or its logits are not those of its output layer."""
        return cls(model, HeadVocabulary.of(model, tokenizer), config, tokenizer)

    @torch.inference_mode()
    def score(
        self,
        examples: Sequence[Ids],
        advance: Advance | None = None,
        *,
        begins: Sequence[bool] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[TokenScores]:
        """Return the scores of each example.

        `begins` is whether each example's first token is a begin-of-text token, which windows then repeat; `names` are
        for errors. Raises UserError if memory is too small for a single row, or if a score is not finite.
        """
        with self._turn:
            return self._score(examples, advance, begins, names)

    def _score(
        self,
        examples: Sequence[Ids],
        advance: Advance | None,
        begins: Sequence[bool] | None,
        names: Sequence[str] | None,
    ) -> list[TokenScores]:
        if self._may_grow and sum(map(len, examples)) > self.budget.tokens:
            self.grow_batches()
        scores = [TokenScores.empty(len(example), self.top_k) for example in examples]
        for group in weighted_groups(enumerate(map(len, examples)), _GROUP_BATCHES * self.budget.tokens):
            rows = [row for k in group for row in self.windows.rows(k, examples[k], bool(begins and begins[k]))]
            for batch, parts in self._batches(sorted(rows, key=lambda row: -len(row.ids)), names):
                put(scores, batch, parts)
                if advance:
                    advance(sum(row.scored for row in batch))
            if fault := _first_fault([scores[k] for k in group]):
                k = group[fault.example]
                place = f"example {names[k]}" if names else f"text {k} (counted from 0)"
                raise UserError(self._not_finite(place, examples[k], bool(begins and begins[k]), fault))
        return scores

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[WindowRow], advance: Advance | None = None) -> list[Floats]:
        """Return the log-probability of each scored token of each row, given all that is before it in its row.

        A row scores from its second token on at the earliest. Raises UserError if memory is too small for a single row.
        """
        numbered = [replace(row, example=number) for number, row in enumerate(rows)]
        scores: list[Floats] = [np.empty(0, np.float32)] * len(rows)
        for batch, parts in self._batches(sorted(numbered, key=lambda row: -len(row.ids)), None):
            ends = np.cumsum([1 + row.scored for row in batch])
            # each row has one position more: its last token's, which predicts nothing that is asked for
            for row, part in zip(batch, np.split(parts.logprobs, ends[:-1]), strict=True):
                scores[row.example] = part[:-1]
            if advance:
                advance(sum(row.scored for row in batch))
        return scores

    def _not_finite(self, place: str, ids: Ids, begins: bool, fault: ScoreFault) -> str:
        """Return the error for an example. The token is the last of the shortest beginning that has the fault.

        Attention multiplies later tokens by 0, so a state that is NaN shows in all tokens before it too.
        """
        right, wrong = 0, len(ids)
        while wrong - right > 1:
            middle = (right + wrong) // 2
            scores = TokenScores.empty(middle, self.top_k)
            for row in self.windows.rows(0, ids[:middle], begins):
                put([scores], [row], self._score_batch([row]))
            right, wrong = (right, middle) if _first_fault([scores]) else (middle, wrong)
        name = (self._tokenizer and self._tokenizer.name) or self.model.name_or_path or self.model.config.model_type
        dtype = str(self.model.dtype).removeprefix("torch.")
        token = f"token {wrong - 1}, {self._spell(int(ids[wrong - 1]))}"
        return f"{name}: {place}, {token}: {fault}: {why_not_finite(dtype)}"

    def _spell(self, id_: int) -> str:
        if self._tokenizer is None:
            return f"id {id_}"
        return f"{self._tokenizer.view.spelling[id_].decode(errors='replace')!r} (id {id_})"

    def _batches(
        self, rows: list[WindowRow], names: Sequence[str] | None
    ) -> Iterator[tuple[list[WindowRow], TokenScores]]:
        """Yield batches of rows, longest first, each with the scores of its tokens, one row after another."""
        done, running = 0, deque[tuple[list[WindowRow], _Running]]()
        while done < len(rows) or running:
            batch = rows[done : done + self.budget.rows(len(rows[done].ids))] if done < len(rows) else []
            started = self._start_if_memory_suffices(batch) if batch else None
            if started is not None:
                running.append((batch, started))
                done += len(batch)
            if running and (started is None or len(running) > self._batches_ahead):
                first, scores = running.popleft()
                yield first, scores.scores()
            elif started is None and len(batch) > 1:
                self.budget.halve(batch)
            elif started is None:
                raise UserError(_too_long(batch[0], names))

    def grow_batches(self) -> None:
        """Find the largest batches that the device's memory allows, by trying."""
        self._may_grow = False
        _memory_share(self.device)  # counts from here on
        length = min(self.windows.size or _PROBE_LENGTH, _PROBE_LENGTH)
        ids = np.zeros(length, np.int32)

        def fits(tokens: int) -> bool:
            rows = [WindowRow(0, ids, 0, 0)] * max(1, tokens // length)
            running = self._start_if_memory_suffices(rows)
            return running is not None and bool(running.scores()) and _memory_share(self.device) <= _MEMORY_SHARE

        self.budget.grow(fits)

    def _start_if_memory_suffices(self, batch: Sequence[WindowRow]) -> _Running | None:
        """Start to score a batch; None if memory is too small."""
        try:
            return self._start(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # outside of `except`, the error no longer holds the allocated memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _score_batch(self, batch: Sequence[WindowRow]) -> TokenScores:
        return self._start(batch).scores()

    def _start(self, batch: Sequence[WindowRow]) -> _Running:
        """Give a batch to the device, without waiting for it where it is a GPU."""
        ids_BT = torch.zeros(len(batch), len(batch[0].ids), dtype=torch.int64)
        scored_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for k, row in enumerate(batch):
            ids_BT[k, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
            scored_BT[k, max(0, row.skipped - 1) : len(row.ids)] = True
        next_N = torch.nn.functional.pad(ids_BT[:, 1:], (0, 1))[scored_BT]
        # as indices, because the processor would have to wait for a mask on the GPU
        scored_N = scored_BT.flatten().nonzero().squeeze(-1)
        with self._on_device():
            hidden_NH = self._hidden_states(ids_BT).flatten(0, 1)[_sent(scored_N, self.device)]
            with self._head_precision():
                return self._head_scores(hidden_NH, _sent(next_N, self.device))

    def _hidden_states(self, ids_BT: Tensor) -> Tensor:
        """[B, T, H] in the head's dtype, on its device. Rows padded on the right need no mask or positions."""
        ids_BT = _sent(ids_BT, input_device(self.model))
        return hidden_states(self.model, ids_BT).to(self.device, self.head.dtype)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Return what a forward pass and the head run within."""
        return self._on_device()

    def head_scores(self, hidden_NH: Tensor, next_N: Tensor) -> TokenScores:
        """Return the scores of N positions from hidden states of the model; `logprobs` are those of the next tokens."""
        with self._head_precision():
            hidden_NH = hidden_NH.to(self.device, self.head.dtype)
            return self._head_scores(hidden_NH, next_N.to(self.device)).scores()

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        if self.device.type == "cuda":
            return torch.cuda.device(self.device)  # compiled kernels run on the thread's current device
        return _processor if self.device.type == "cpu" else contextlib.nullcontext()

    def _head_precision(self) -> contextlib.AbstractContextManager[None]:
        if self.device.type != "cpu":
            return contextlib.nullcontext()
        return matmul_precision("medium" if self.model.dtype == torch.bfloat16 else "highest")

    def _head_scores(self, hidden_NH: Tensor, next_N: Tensor) -> _Running:
        next_tokens = self.next_tokens(hidden_NH, next_N, top=self.top_k)
        numbers = [logprobs_N.float() for logprobs_N in next_tokens[:2]]
        if next_tokens.top_ids_NR is not None and next_tokens.top_logprobs_NR is not None:
            numbers += [next_tokens.top_ids_NR.int(), next_tokens.top_logprobs_NR.float()]
        return _fetched(numbers)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without waiting for the copy where it is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _fetched(numbers: Sequence[Tensor]) -> _Running:
    """Return the numbers in the processor's memory, or on their way there from a GPU."""
    device = numbers[0].device
    if device.type != "cuda":
        return _Running(tuple(number.cpu() for number in numbers), None)
    copies = tuple(torch.empty(number.shape, dtype=number.dtype, pin_memory=True) for number in numbers)
    for copy, number in zip(copies, numbers, strict=True):
        copy.copy_(number, non_blocking=True)
    return _Running(copies, torch.cuda.current_stream(device).record_event())


def _memory_share(device: torch.device) -> float:
    """Return the share of a GPU's memory that was in use at the most since the last call; 0 on a processor."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return (others + peak) / total


def _first_fault(scores: Sequence[TokenScores]) -> ScoreFault | None:
    return first_fault_of_rows([row.logprobs for row in scores], [row.boundary_logprobs for row in scores])


def _too_long(row: WindowRow, names: Sequence[str] | None) -> str:
    name = f"example {names[row.example]}" if names else "an example"
    return (
        f"{name}: out of memory with only {len(row.ids)} of its tokens: set a smaller score.window, a smaller "
        "score.dtype, or set score.device_map to auto to spread the teacher over GPUs and memory"
    )


def put(scores: list[TokenScores], batch: Sequence[WindowRow], parts: TokenScores) -> None:
    """Write a batch's scores, position after position, to the scores of their examples.

    A row has a position for each token that it scores, and before them one for the last token of its context, if any.
    """
    at = 0
    for row in batch:
        # the last context token of a window is one of its positions: it predicts the first scored token
        before = min(1, row.skipped)
        tokens, end = slice(row.first, row.first + row.scored), at + before + row.scored
        target = scores[row.example]
        predicted = slice(tokens.start + 1 - before, tokens.stop)
        target.logprobs[predicted] = parts.logprobs[at : end - 1]
        for values, part in zip(target[1:], parts[1:], strict=True):
            values[tokens] = part[at + before : end]
        at = end


def _head(model: PreTrainedModel, rows: int | None) -> Head | LayerHead:
    """Return the model's head on its device, or in the processor's memory if it was left on disk."""
    layer: Any = model.get_output_embeddings()
    on_disk = isinstance(layer, torch.nn.Linear) and layer.weight.device.type == "meta"
    with align_module_device(layer) if on_disk else contextlib.nullcontext():
        on_processor = isinstance(layer, torch.nn.Linear) and layer.weight.device.type == "cpu"
        # sums in float32: in bfloat16, logits of 20 would be off by 0.06
        return output_head(model, torch.float32 if on_processor else None, rows)
