"""The teacher in training memory, for the terms that need more of it than its scores.

Shapes: M positions of the teacher's rows, J its hidden width.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.scoring.head import hidden_states, output_head


class LiveTeacher:
    """A frozen model and its head."""

    def __init__(self, model: PreTrainedModel, rows: int | None = None) -> None:
        """`rows` are the tokenizer's (None: all of the head's)."""
        self.model = model.eval().requires_grad_(False)
        self.head = output_head(model, rows=rows)

    @torch.no_grad()
    def hidden(self, token_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
        """[M, J]"""
        return hidden_states(self.model, token_ids_BT, position_ids_BT).flatten(0, 1)


def projections(
    teacher: PreTrainedModel, student: PreTrainedModel, objective: ObjectiveConfig, seed: int
) -> nn.ModuleDict:
    """What is trained beside the student to bring its hidden states to the teacher's width; no part of the student."""
    found = nn.ModuleDict()
    teacher_width, student_width = (model.config.get_text_config().hidden_size for model in (teacher, student))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if "latents" in objective.terms and student_width != teacher_width:
            found["latents"] = nn.Linear(student_width, teacher_width)
    return found
