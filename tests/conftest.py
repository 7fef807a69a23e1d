"""Fixtures for all tests. The environment is set before torch and Prefect are imported."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",  # tiny tensors: two threads spin on each other
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE="100",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="90",
)

import pytest
from transformers import PreTrainedTokenizerFast

from tests import tiny


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with a byte-level tokenizer, as a model folder."""
    tokenizer = tiny.byte_level_tokenizer()
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama", tiny.tiny_llama(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Gemma 3 with a SentencePiece-style tokenizer, as a model folder."""
    tokenizer = tiny.sentencepiece_tokenizer()
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-gemma", tiny.tiny_gemma(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return tiny.byte_level_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    return tiny.sentencepiece_tokenizer()
