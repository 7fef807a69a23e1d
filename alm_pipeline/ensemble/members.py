"""A model in an ensemble: what it reads when the lead's tokens come, and what it says of the tokens that all share.

A member reads either the lead's tokens with its own ids (`AlignedMember`: one forward pass a token, as a model alone),
or the text that they spell with its own tokens (`RetokenizedMember`).

Shapes: B rows, T tokens of the lead so far, U tokens of a member, K positions that are wanted, N positions, H hidden
width, V ids of the lead, L tokens that all members speak of.
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

from alm_pipeline.models.files import length_in
from alm_pipeline.models.output_head import at_least_float32, headless, input_device, output_head
from alm_pipeline.transfer.bytes.modeling_ngram_bytes import LONGEST
from storage.errors import UserError


class Memory(ABC):
    """What a member keeps of the tokens that it has seen."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Let row k be what row rows[k] was."""

    @abstractmethod
    def crop(self, tokens: int) -> None:
        """Forget so many of the lead's last tokens."""


class Member(ABC):
    """A model and its part of the shared tokens."""

    def __init__(self, model: PreTrainedModel, columns_L: Tensor, weight: float) -> None:
        """`columns_L` are the model's ids of the shared tokens."""
        self.model, self.weight = model, weight
        self.head = output_head(model, None)
        self.columns_L = columns_L.to(self.head.device)
        self._all = torch.equal(columns_L, torch.arange(self.head.vocabulary))
        self._takes_positions = "position_ids" in inspect.signature(headless(model).forward).parameters

    @abstractmethod
    def memory(self) -> Memory:
        """A cache with nothing in it."""

    @abstractmethod
    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, wanted: int, memory: Memory | None) -> Tensor:
        """[B, wanted, H] what the head takes at the last `wanted` of the lead's positions.

        All tokens are given again each time; with a memory, only those that it lacks are computed.
        """

    def logprobs(self, hidden_NH: Tensor) -> Tensor:
        """[N, L] in float32 or better; what is not shared is left out before the softmax."""
        logits_NV = at_least_float32(self.head.logits(hidden_NH.to(self.head.device, self.head.dtype)))
        return (logits_NV if self._all else logits_NV[:, self.columns_L]).log_softmax(-1)

    def _run(self, ids_BU: Tensor, mask_BU: Tensor, seen: int, past: Any, use_cache: bool) -> Any:
        """The model's output for the columns from `seen` on; those before are in `past`."""
        positions_BU = (mask_BU.cumsum(-1) - 1).clamp(min=0)
        place = input_device(self.model)
        if seen and hasattr(
            self.model, "ngrams"
        ):  # of a byte model: what its cache stands for, a longest token but one
            past.previous_ids = ids_BU[:, max(0, seen - LONGEST + 1) : seen].to(place)
        positions = {"position_ids": positions_BU[:, seen:].to(place)} if self._takes_positions else {}
        return headless(self.model)(
            input_ids=ids_BU[:, seen:].to(place),
            attention_mask=mask_BU.to(place),
            past_key_values=past,
            use_cache=use_cache,
            **positions,
        )


@dataclass
class _AlignedMemory(Memory):
    past: Any = None
    columns: int = 0

    def reorder(self, rows: Tensor) -> None:
        if self.past is not None:
            self.past.reorder_cache(rows)

    def crop(self, tokens: int) -> None:
        if self.past is not None:
            self.past.crop(-tokens)
            self.columns -= tokens


class AlignedMember(Member):
    """Reads the lead's tokens one by one, each with its own id.

    What its own tokenizer puts before every text (`<bos>`) stands before the row's first token, unless the row begins
    with it already: a model that was trained with it computes nonsense without.
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
        """`inputs_V` is what it reads for each of the lead's ids, −1 where it can't; `spell` names an id in errors."""
        super().__init__(model, columns_L, weight)
        self._inputs_V, self._spell = inputs_V, spell
        self._prefix_P = torch.tensor(prefix, dtype=torch.int64)

    def memory(self) -> Memory:
        return _AlignedMemory()

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, wanted: int, memory: Memory | None) -> Tensor:
        assert memory is None or isinstance(memory, _AlignedMemory)
        ids_BU, mask_BU = self._with_prefix(self._own_ids(ids_BT, mask_BT), mask_BT)
        if memory is None:
            output = self._run(ids_BU, mask_BU, 0, None, use_cache=False)
        else:
            output = self._run(ids_BU, mask_BU, memory.columns, memory.past, use_cache=True)
            memory.past, memory.columns = output.past_key_values, ids_BU.shape[1]
        return output.last_hidden_state[:, -wanted:]  # type: ignore[no-any-return]

    def _own_ids(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        own_BT = self._inputs_V.to(ids_BT.device)[ids_BT].where(mask_BT.bool(), 0)
        if (own_BT < 0).any():
            unknown = int(ids_BT[own_BT < 0][0])
            raise UserError(
                f"token {unknown}, {self._spell(unknown)!r}, is not one of those that all members have: "
                "tokenize with the ensemble's `encode`, which spells texts with those"
            )
        return own_BT

    def _with_prefix(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """[B, U] ids and mask with room for the prefix in front of every row, of padding where it is not needed."""
        prefix_P, rows = self._prefix_P.to(ids_BT.device), len(ids_BT)
        if not len(prefix_P):
            return ids_BT, mask_BT
        first_B = mask_BT.long().argmax(-1, keepdim=True)
        begun_B = ids_BT.gather(1, first_B) == prefix_P[0]
        at_BP = first_B + torch.arange(len(prefix_P), device=ids_BT.device)
        room_BP = ids_BT.new_zeros(rows, len(prefix_P))
        ids_BU = torch.cat([room_BP, ids_BT], -1).scatter(1, at_BP, prefix_P.expand(rows, -1))
        shown_BP = (~begun_B).to(mask_BT.dtype).expand(-1, len(prefix_P))
        mask_BU = torch.cat([room_BP.to(mask_BT.dtype), mask_BT], -1).scatter(1, at_BP, shown_BP)
        return ids_BU, mask_BU


Ids = tuple[int, ...]


@dataclass
class _RetokenizedMemory(Memory):
    """A row's tokens and their keys and values, of each row."""

    rows: list[tuple[Ids, Any]] = field(default_factory=list)

    def reorder(self, rows: Tensor) -> None:
        # a row that goes on twice: each needs keys and values of its own
        self.rows = [copy.deepcopy(self.rows[row]) for row in rows.tolist()] if self.rows else []

    def crop(self, tokens: int) -> None:
        self.rows = []


class RetokenizedMember(Member):
    """Reads the text so far in its own tokens.

    As the text grows its last tokens may change: then the row is computed anew from its beginning, otherwise from where
    it was. Rows are computed one by one. For all positions of a text at once, each position whose text the member
    tokenizes other than the longer ones' beginning costs a pass of its own.
    """

    def __init__(
        self, model: PreTrainedModel, columns_L: Tensor, weight: float, context: Callable[[Sequence[int]], Ids]
    ) -> None:
        """`context` gives the member's tokens, one at least, of what the lead's ids spell."""
        super().__init__(model, columns_L, weight)
        self._context = context

    def memory(self) -> Memory:
        return _RetokenizedMemory()

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, wanted: int, memory: Memory | None) -> Tensor:
        assert memory is None or isinstance(memory, _RetokenizedMemory)
        ends = range(ids_BT.shape[1] - wanted + 1, ids_BT.shape[1] + 1)
        contexts_BK = [
            [self._context([id_ for id_, shown in zip(ids[:end], mask[:end], strict=True) if shown]) for end in ends]
            for ids, mask in zip(ids_BT.tolist(), mask_BT.tolist(), strict=True)
        ]
        if memory is None or wanted > 1:
            hidden = [self._everywhere(contexts) for contexts in contexts_BK]
        else:
            hidden = [self._onwards(memory, row, contexts[0]) for row, contexts in enumerate(contexts_BK)]
        return torch.stack(hidden)

    def _onwards(self, memory: _RetokenizedMemory, row: int, context: Ids) -> Tensor:
        """[1, H] after the context; the memory's row grows to it."""
        memory.rows += [((), None)] * (row + 1 - len(memory.rows))
        before, past = memory.rows[row]
        if not len(before) < len(context) or context[: len(before)] != before:
            before, past = (), None
        output = self._pass(context, len(before), past, use_cache=True)
        memory.rows[row] = (context, output.past_key_values)
        return output.last_hidden_state[0, -1:]  # type: ignore[no-any-return]

    def _everywhere(self, contexts: Sequence[Ids]) -> Tensor:
        """[K, H] after each context; one pass for all that a longer one begins with."""
        hidden: dict[Ids, Tensor] = {}
        wanted = set(contexts)
        for context in sorted(wanted, key=len, reverse=True):
            if context not in hidden:
                states_UH = self._pass(context, 0, None, use_cache=False).last_hidden_state[0]
                beginnings = (context[: end + 1] for end in range(len(context)))
                hidden |= {ids: states_UH[len(ids) - 1] for ids in beginnings if ids in wanted}
        return torch.stack([hidden[context] for context in contexts])

    def _pass(self, context: Ids, seen: int, past: Any, use_cache: bool) -> Any:
        longest = length_in(self.model.config.get_text_config().to_dict())
        if longest and len(context) > longest:
            raise UserError(
                f"{self.model.config.model_type}: the text is {len(context)} of its tokens, and it takes {longest}: "
                "shorten the text"
            )
        ids_BU = torch.tensor([context])
        return self._run(ids_BU, torch.ones_like(ids_BU), seen, past, use_cache)
