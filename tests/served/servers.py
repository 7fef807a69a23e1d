"""Real vLLM servers, the models that they serve, and how their scores are compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.scorer import TokenScores
from alm_pipeline.scoring.served.server import started_server
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from tests import tiny
from tests.served.environment import ARGUMENTS, command, set_variables

DEMO = "demo:smollm2-135m-instruct"


def config(*urls: str, arguments: tuple[str, ...] = (), **settings: Any) -> ScoreConfig:
    served = {"urls": urls, "command": command(), "arguments": (*ARGUMENTS, *arguments), **settings.pop("served", {})}
    return ScoreConfig.model_validate({"engine": "http", "dtype": "float32", "served": served, **settings})


@contextmanager
def server(
    teacher: ModelReference,
    vocabulary: ServedVocabulary | None = None,
    *,
    arguments: tuple[str, ...] = (),
    **settings: Any,
) -> Iterator[str]:
    """Yield the address of a server with the plugin; with `served={"hidden_states": True}`, of one without it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_variables(monkeypatch)
        chosen = config(arguments=arguments, top_k=5, **settings)
        known = None if chosen.served.hidden_states else vocabulary or ServedVocabulary.of(teacher)
        with started_server(teacher, chosen, known) as started:
            yield started.url


def encoded(teacher: ModelReference, texts: list[str]) -> list[np.ndarray]:
    return [np.array(teacher.tokenizer.fast(text)["input_ids"], np.int32) for text in texts]


def largest_difference(found: list[TokenScores], expected: list[TokenScores]) -> float:
    pairs = [
        (getattr(ours, name)[start:], getattr(theirs, name)[start:])
        for ours, theirs in zip(found, expected, strict=True)
        for name, start in (("logprobs", 1), ("boundary_logprobs", 0))
    ]
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)


def small_llama(folder: Path, seed: int, texts: list[str] = tiny.TEXTS) -> ModelReference:
    """A Llama of a shape that vLLM has a kernel for on processors."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128}
    shape |= {"num_hidden_layers": 2, "max_position_embeddings": 512, "vocab_size": 400, "initializer_range": 0.2}
    tokenizer = tiny.byte_level_tokenizer(texts=texts)
    return ModelReference(tiny.save(folder / "small-llama", LlamaForCausalLM(LlamaConfig(**shape)), tokenizer))
