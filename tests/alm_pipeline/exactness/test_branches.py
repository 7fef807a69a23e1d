"""Branches of a text in one row, against each sequence as a row of its own."""

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from alm_pipeline.exactness.branches import BranchModel
from alm_pipeline.exactness.prefix_sums import TokenPath
from alm_pipeline.models.tokenizer import LoadedTokenizer
from tests.tiny import byte_level_tokenizer, tiny_gemma, tiny_gpt2, tiny_llama, tiny_qwen

PATHS = [TokenPath(3, (7,)), TokenPath(3, (7, 9)), TokenPath(12, (1,)), TokenPath(5, ()), TokenPath(12, (1, 2, 3, 4))]
IDS = [3, *range(20, 38)]


def mamba(vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, state_size=4))


@pytest.fixture(scope="module")
def tokenizer() -> LoadedTokenizer:
    return LoadedTokenizer.of(byte_level_tokenizer())


@pytest.mark.parametrize(
    ("make", "is_packed"),
    [(tiny_llama, True), (tiny_gpt2, True), (tiny_qwen, True), (tiny_gemma, False), (mamba, False)],
    ids=["llama", "gpt2", "qwen", "gemma beyond its window", "mamba"],
)
def test_every_sequence_has_the_probabilities_of_its_own_row(
    make: "type[PreTrainedModel]", is_packed: bool, tokenizer: LoadedTokenizer
) -> None:
    model = BranchModel(make(len(tokenizer.fast)), tokenizer)
    ids = IDS if is_packed else [*IDS, *range(50, 60)]
    paths = PATHS if is_packed else [*PATHS, TokenPath(25, (4,))]
    branches = model.after(ids)
    rows = np.stack(list(branches(paths)))
    assert branches.is_packed is is_packed
    for path, row in zip(paths, rows, strict=True):
        sequence = torch.tensor([[*ids[: path.kept], *path.others]])
        with torch.inference_mode():
            expected = model.model(sequence, use_cache=False).logits[0, -1].log_softmax(-1)
        np.testing.assert_allclose(row, expected[: len(row)], atol=2e-4)


def test_canonical_rows_are_those_of_a_plain_pass(tokenizer: LoadedTokenizer) -> None:
    model = BranchModel(tiny_llama(len(tokenizer.fast)), tokenizer)
    with torch.inference_mode():
        expected = model.model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    np.testing.assert_allclose(model.after(IDS).canonical_rows, expected, atol=1e-4)
