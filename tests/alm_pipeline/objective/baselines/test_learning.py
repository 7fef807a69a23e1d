"""Gradient descent on each baseline moves the student toward the teacher, and does not change the teacher."""

import pytest
import torch
from torch import Tensor

from alm_pipeline.models.output_head import hidden_states, output_head
from alm_pipeline.objective.baselines.dskd import DskdProjections, dskd_loss
from alm_pipeline.objective.baselines.mined import mined_loss
from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.objective.baselines.uld import uld_loss
from alm_pipeline.vocabulary.byte_view import byte_view
from tests import tiny

TEXT = "Natalia sold 48 clips in April"


@pytest.mark.parametrize("baseline", ["uld", "mined", "dskd"])
def test_the_loss_of_a_tiny_student_falls(baseline: str) -> None:
    tokenizers = tiny.sentencepiece_tokenizer(), tiny.byte_level_tokenizer()
    teacher, student = tiny.tiny_gemma(len(tokenizers[0])), tiny.tiny_llama(len(tokenizers[1]))
    teacher_ids, ids = (tokenizer(TEXT, return_tensors="pt")["input_ids"] for tokenizer in tokenizers)
    torch.manual_seed(0)
    projections = DskdProjections(32, 32)
    mapping = torch.from_numpy(mined_mapping(*(byte_view(tokenizer.backend_tokenizer) for tokenizer in tokenizers)))
    teacher_hidden = hidden_states(teacher, teacher_ids, torch.arange(teacher_ids.shape[1])[None])[0].detach()
    teacher_example, example = torch.zeros_like(teacher_ids[0]), torch.zeros_like(ids[0])
    teacher_predicted, predicted = (torch.arange(tokens.shape[1]) > 0 for tokens in (teacher_ids, ids))
    teacher_last, last = torch.tensor([len(teacher_ids[0]) - 1]), torch.tensor([len(ids[0]) - 1])

    def loss() -> Tensor:
        hidden = hidden_states(student, ids, torch.arange(ids.shape[1])[None])[0]
        heads = output_head(teacher), output_head(student)
        places = teacher_predicted, predicted, teacher_example, example
        if baseline == "uld":
            return uld_loss(teacher_hidden, hidden, *heads, *places)
        if baseline == "mined":
            return mined_loss(teacher_hidden, hidden, *heads, teacher_last, last, mapping)
        embeddings = teacher.get_input_embeddings()(teacher_ids)[0], student.get_input_embeddings()(ids)[0]
        return dskd_loss(projections, teacher_hidden, hidden, *embeddings, *heads, ids[0], *places)

    optimizer = torch.optim.Adam([*student.parameters(), *projections.parameters()], lr=3e-3)
    first = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * first
    assert all(parameter.grad is None for parameter in teacher.parameters())
