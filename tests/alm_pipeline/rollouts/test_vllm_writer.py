"""vLLM as a writer, without vLLM: its names, and what is said where it is not installed. `tests/served` runs it."""

import json
from importlib.util import find_spec

import pytest

from alm_pipeline.config import SamplingConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rollouts.prompts import Prompt
from alm_pipeline.rollouts.vllm_writer import VllmWriter, model_writer
from storage.errors import UserError

VLLM = SamplingConfig(engine="vllm", max_tokens=4)


def test_texts_of_vllm_have_names_of_their_own() -> None:
    """Those of transformers keep the names that they had before there was a choice."""
    plain = SamplingConfig()
    assert not {"engine", "vllm_arguments"} & plain.identity().keys()
    with_arguments = VLLM.model_copy(update={"vllm_arguments": ("--quantization=fp8",)})
    assert len({json.dumps(sampling.identity()) for sampling in (plain, VLLM, with_arguments)}) == 3


@pytest.mark.bad_input
def test_arguments_without_vllm_are_refused() -> None:
    with pytest.raises(ValueError, match="set engine to vllm, or leave them out"):
        SamplingConfig(vllm_arguments=("--enforce-eager",))


@pytest.mark.bad_input
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named(llama_folder: str) -> None:
    writer = model_writer(ModelReference(llama_folder), VLLM)
    assert isinstance(writer, VllmWriter)
    with pytest.raises(UserError, match=r"rounds\.sampling\.engine: vLLM is not installed"):
        writer.write([Prompt("1", "train", "The quick brown", None, None)], [1], "none")
    writer.release()
