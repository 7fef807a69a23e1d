"""The state of an ensemble during generation: the lead's tokens so far, and each member's keys and values.

Shapes: B rows, T tokens of the lead so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from alm_pipeline.ensemble.members import EnsembleMember


class EnsembleCache(Cache):
    """A cache for transformers' `generate`; its length is the number of the lead's tokens."""

    def __init__(self, members: Sequence[EnsembleMember]) -> None:
        super().__init__(layers=[])
        self._members = members
        self.reset()

    def reset(self) -> None:
        self.ids_BT: Tensor | None = None
        self.memories = [member.memory() for member in self._members]

    def append(self, ids_BT: Tensor) -> Tensor:
        """Append tokens, and return all tokens so far, [B, T]."""
        self.ids_BT = ids_BT if self.ids_BT is None else torch.cat([self.ids_BT, ids_BT.to(self.ids_BT.device)], -1)
        return self.ids_BT

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.ids_BT is None else int(self.ids_BT.shape[1])

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return -1 if self.ids_BT is None else len(self.ids_BT)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row k by the former row beam_idx[k]; a row may be used several times, or not at all."""
        if self.ids_BT is not None:
            self.ids_BT = self.ids_BT.index_select(0, beam_idx.to(self.ids_BT.device))
            for memory in self.memories:
                memory.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(max(0, self.batch_size)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last −`tokens_to_remove` tokens: transformers passes a negative number."""
        if self.ids_BT is not None and tokens_to_remove:
            self.ids_BT = self.ids_BT[:, :tokens_to_remove]
            for memory in self.memories:
                memory.crop(-tokens_to_remove)
