"""The members of an ensemble: how each reads the lead's tokens, and its distribution over the shared tokens.

A member reads either the lead's tokens with its own ids (`AlignedMember`: one forward pass per token, as for a single
model), or the text that they spell in its own tokens (`RetokenizedMember`).

Shapes: B rows, T tokens of the lead so far, U tokens of a member, K requested positions, N positions, H hidden width,
V ids of the lead, L tokens that all members have.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.output_head import at_least_float32, headless, input_device, output_head
from alm_pipeline.scoring.finite import why_not_finite
from alm_pipeline.transfer.bytes.modeling_ngram_bytes import LONGEST
from storage.errors import UserError


class MemberMemory(ABC):
    """A member's cache of the tokens that it has read."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Replace row k by the former row rows[k]."""

    @abstractmethod
    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens of the lead."""


class EnsembleMember(ABC):
    """A model and its ids of the shared tokens."""

    def __init__(self, model: PreTrainedModel, columns_L: Tensor, weight: float) -> None:
        """`columns_L` are the model's ids of the shared tokens."""
        self.model, self.weight = model, weight
        self.head = output_head(model, None)
        self.columns_L = columns_L.to(self.head.device)
        self._has_all_tokens = torch.equal(columns_L, torch.arange(self.head.vocabulary))
        self._takes_positions = "position_ids" in inspect.signature(headless(model).forward).parameters

    @abstractmethod
    def memory(self) -> MemberMemory:
        """Return an empty cache."""

    @abstractmethod
    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, positions: int, memory: MemberMemory | None) -> Tensor:
        """Return the head's inputs [B, positions, H] at the last `positions` positions of the lead.

        Every call passes all tokens; with a memory, only those that it lacks are computed.
        """

    def logprobs(self, hidden_NH: Tensor) -> Tensor:
        """[N, L] in float32 or better; tokens that are not shared are left out before the softmax."""
        logits_NV = at_least_float32(self.head.logits(hidden_NH.to(self.head.device, self.head.dtype)))
        return (logits_NV if self._has_all_tokens else logits_NV[:, self.columns_L]).log_softmax(-1)

    def checked_logprobs(self, hidden_NH: Tensor) -> Tensor:
        """Return what `logprobs` does. Raises UserError if a log-probability is NaN."""
        logprobs_NL = self.logprobs(hidden_NH)
        if logprobs_NL.isnan().any():
            dtype = str(self.model.dtype).removeprefix("torch.")
            name = self.model.name_or_path or self.model.config.model_type
            raise UserError(f"member {name}: its log-probabilities are NaN: {why_not_finite(dtype)}")
        return logprobs_NL

    def _run(self, ids_BU: Tensor, mask_BU: Tensor, seen: int, past: Any, use_cache: bool) -> Any:
        """Run the model on the columns from `seen` on; those before are in `past`."""
        positions_BU = (mask_BU.cumsum(-1) - 1).clamp(min=0)
        device = input_device(self.model)
        if seen and hasattr(self.model, "ngrams"):
            # a byte model with n-gram embeddings needs the last cached bytes, one less than its longest token
            past.previous_ids = ids_BU[:, max(0, seen - LONGEST + 1) : seen].to(device)
        positions = {"position_ids": positions_BU[:, seen:].to(device)} if self._takes_positions else {}
        return headless(self.model)(
            input_ids=ids_BU[:, seen:].to(device),
            attention_mask=mask_BU.to(device),
            past_key_values=past,
            use_cache=use_cache,
            **positions,
        )


@dataclass
class _AlignedMemory(MemberMemory):
    past: Any = None
    columns: int = 0

    def reorder(self, rows: Tensor) -> None:
        if self.past is not None:
            self.past.reorder_cache(rows)

    def crop(self, tokens: int) -> None:
        if self.past is not None:
            self.past.crop(-tokens)
            self.columns -= tokens


class AlignedMember(EnsembleMember):
    """Reads the lead's tokens one by one, with its own id for each.

    The tokens that its own tokenizer puts before every text (`<bos>`) are put before the row's first token, unless the
    row already begins with them: a model that was trained with them gives meaningless predictions without them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        columns_L: Tensor,
        weight: float,
        inputs_V: Tensor,
        prefix: Sequence[int],
        spell: Callable[[int], str],
    ) -> None:
        """`inputs_V` is the member's id for each of the lead's, −1 if it has none; `spell` names an id in errors."""
        super().__init__(model, columns_L, weight)
        self._inputs_V, self._spell = inputs_V, spell
        self._prefix_P = torch.tensor(prefix, dtype=torch.int64)

    def memory(self) -> MemberMemory:
        return _AlignedMemory()

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, positions: int, memory: MemberMemory | None) -> Tensor:
        assert memory is None or isinstance(memory, _AlignedMemory)
        ids_BU, mask_BU = self._with_prefix(self._member_ids(ids_BT, mask_BT), mask_BT)
        if memory is None:
            output = self._run(ids_BU, mask_BU, 0, None, use_cache=False)
        else:
            output = self._run(ids_BU, mask_BU, memory.columns, memory.past, use_cache=True)
            memory.past, memory.columns = output.past_key_values, ids_BU.shape[1]
        return output.last_hidden_state[:, -positions:]  # type: ignore[no-any-return]

    def _member_ids(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        member_BT = self._inputs_V.to(ids_BT.device)[ids_BT].where(mask_BT.bool(), 0)
        if (member_BT < 0).any():
            unknown = int(ids_BT[member_BT < 0][0])
            raise UserError(
                f"token {unknown}, {self._spell(unknown)!r}, is not shared by all members: "
                "tokenize with the ensemble's `encode`, which uses shared tokens only"
            )
        return member_BT

    def _with_prefix(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Put the prefix before every row, or padding if the row already begins with it; return ids and mask [B, U]."""
        prefix_P, rows = self._prefix_P.to(ids_BT.device), len(ids_BT)
        if not len(prefix_P):
            return ids_BT, mask_BT
        first_B = mask_BT.long().argmax(-1, keepdim=True)
        has_prefix_B = ids_BT.gather(1, first_B) == prefix_P[0]
        at_BP = first_B + torch.arange(len(prefix_P), device=ids_BT.device)
        room_BP = ids_BT.new_zeros(rows, len(prefix_P))
        ids_BU = torch.cat([room_BP, ids_BT], -1).scatter(1, at_BP, prefix_P.expand(rows, -1))
        prefix_mask_BP = (~has_prefix_B).to(mask_BT.dtype).expand(-1, len(prefix_P))
        mask_BU = torch.cat([room_BP.to(mask_BT.dtype), mask_BT], -1).scatter(1, at_BP, prefix_mask_BP)
        return ids_BU, mask_BU


Ids = tuple[int, ...]


@dataclass
class _RetokenizedMemory(MemberMemory):
    """The tokens of each row, with their keys and values."""

    rows: list[tuple[Ids, Any]] = field(default_factory=list)

    def reorder(self, rows: Tensor) -> None:
        # copies, because a row may be used twice, and each needs its own keys and values
        self.rows = [copy.deepcopy(self.rows[row]) for row in rows.tolist()] if self.rows else []

    def crop(self, tokens: int) -> None:
        self.rows = []


class RetokenizedMember(EnsembleMember):
    """Reads the text so far in its own tokens.

    When the text grows, its last tokens may change. Then the row is computed again from its beginning, otherwise from
    its last token. Rows are computed one by one. For all positions of a text at once, a position needs a separate pass
    if the member's tokens of the text up to it are not the beginning of its tokens of a longer text.
    """

    def __init__(
        self, model: PreTrainedModel, columns_L: Tensor, weight: float, context: Callable[[Sequence[int]], Ids]
    ) -> None:
        """`context` returns the member's tokens, at least one, of the text that the lead's ids spell."""
        super().__init__(model, columns_L, weight)
        self._context = context

    def memory(self) -> MemberMemory:
        return _RetokenizedMemory()

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, positions: int, memory: MemberMemory | None) -> Tensor:
        assert memory is None or isinstance(memory, _RetokenizedMemory)
        ends = range(ids_BT.shape[1] - positions + 1, ids_BT.shape[1] + 1)
        contexts_BK = [
            [
                self._context([id_ for id_, is_token in zip(ids[:end], mask[:end], strict=True) if is_token])
                for end in ends
            ]
            for ids, mask in zip(ids_BT.tolist(), mask_BT.tolist(), strict=True)
        ]
        if memory is None or positions > 1:
            hidden = [self._at_all_positions(contexts) for contexts in contexts_BK]
        else:
            hidden = [self._at_last_position(memory, row, contexts[0]) for row, contexts in enumerate(contexts_BK)]
        return torch.stack(hidden)

    def _at_last_position(self, memory: _RetokenizedMemory, row: int, context: Ids) -> Tensor:
        """[1, H] the hidden state after the context, which becomes the memory's row."""
        memory.rows += [((), None)] * (row + 1 - len(memory.rows))
        before, past = memory.rows[row]
        if not len(before) < len(context) or context[: len(before)] != before:
            before, past = (), None
        output = self._pass(context, len(before), past, use_cache=True)
        memory.rows[row] = (context, output.past_key_values)
        return output.last_hidden_state[0, -1:]  # type: ignore[no-any-return]

    def _at_all_positions(self, contexts: Sequence[Ids]) -> Tensor:
        """[K, H] the hidden states after each context; a pass also serves all contexts that its own begins with."""
        hidden: dict[Ids, Tensor] = {}
        unique = set(contexts)
        for context in sorted(unique, key=len, reverse=True):
            if context not in hidden:
                states_UH = self._pass(context, 0, None, use_cache=False).last_hidden_state[0]
                beginnings = (context[: end + 1] for end in range(len(context)))
                hidden |= {ids: states_UH[len(ids) - 1] for ids in beginnings if ids in unique}
        return torch.stack([hidden[context] for context in contexts])

    def _pass(self, context: Ids, seen: int, past: Any, use_cache: bool) -> Any:
        longest = context_length(self.model.config)
        if longest and len(context) > longest:
            raise UserError(
                f"{self.model.config.model_type}: the text has {len(context)} of its tokens, and its context is "
                f"{longest}: shorten the text"
            )
        ids_BU = torch.tensor([context])
        return self._run(ids_BU, torch.ones_like(ids_BU), seen, past, use_cache)
