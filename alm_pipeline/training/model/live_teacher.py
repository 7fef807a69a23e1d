"""The teacher in memory during training, for terms that need more than its cached scores.

Shapes: M positions of the teacher's rows, J its hidden width.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.models.output_head import hidden_states, output_head

TokenMapping = Literal["nearest", "same"]
"""the teacher's token with the nearest spelling (`mined_mapping`), or only one of the same bytes"""


class LiveTeacher:
    """A frozen teacher and its output head."""

    def __init__(
        self, model: PreTrainedModel, rows: int | None = None, mappings: Mapping[TokenMapping, Tensor] | None = None
    ) -> None:
        """`rows`: the head's rows of the tokenizer (None: all); `mappings`: those that the objective's terms need."""
        self.model = model.eval().requires_grad_(False)
        self.head = output_head(model, rows=rows)
        self.mappings = {name: mapping_V.to(self.head.device) for name, mapping_V in (mappings or {}).items()}
        """[V] the teacher's token for each of the student's, −1 if it has none"""

    @torch.no_grad()
    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the hidden states [M, J] of the teacher's rows of a batch, in the teacher's precision."""
        ids_BT, positions_BT = batch["teacher_token_ids_BT"], batch["teacher_position_ids_BT"]
        return hidden_states(self.model, ids_BT, positions_BT).flatten(0, 1).to(self.head.dtype)
