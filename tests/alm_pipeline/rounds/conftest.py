"""A configuration with two rounds between tiny models that write."""

import json
from pathlib import Path

import pytest

from alm_pipeline.config import (
    AlmConfig,
    CorpusConfig,
    EvaluationConfig,
    FilesSource,
    ObjectiveConfig,
    PromptsConfig,
    RoundsConfig,
    SamplingConfig,
    ScoreConfig,
    StudentConfig,
    TrainConfig,
)
from tests import writers


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A teacher, and a student that is not as far."""
    folder = tmp_path_factory.mktemp("round-models")
    return writers.trained_pair(folder)


def config_on(folder: Path, models: tuple[str, str], rows: list[dict[str, object]], name: str) -> AlmConfig:
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    source = FilesSource(urls=(str(file),))
    return AlmConfig(
        corpus=CorpusConfig(name=name, source=source, held_out=0.25, max_bytes=300, shard_bytes=2048),
        teacher=models[0],
        student=StudentConfig(model=models[1]),
        score=ScoreConfig(dtype="float32", mantissa_bits=15),
        train=TrainConfig(steps=3, batch_tokens=256, row_tokens=128, learning_rate=1e-3, checkpoint_steps=2),
        evaluation=EvaluationConfig(steps=2, samples=1, sample_tokens=4),
        rounds=RoundsConfig(
            count=2,
            per_round=24,
            held_out=10,
            mix=1.0,
            prompts=PromptsConfig(text_bytes=12, per_shard=12),
            sampling=SamplingConfig(max_tokens=10),
            steps=3,
            objective=ObjectiveConfig(divergence="reverse_binary_kl"),
        ),
    )


@pytest.fixture(scope="session")
def text_rounds(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AlmConfig:
    rows = [{"text": text} for text in writers.sentences(80, 3)]
    return config_on(tmp_path_factory.mktemp("text-rounds"), models, rows, "texts")


@pytest.fixture(scope="session")
def talk_rounds(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AlmConfig:
    rows: list[dict[str, object]] = [{"messages": chat} for chat in writers.chats(80, 4)]
    return config_on(tmp_path_factory.mktemp("talk-rounds"), models, rows, "talks")
