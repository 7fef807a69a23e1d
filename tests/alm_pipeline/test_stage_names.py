"""The names of what a single corpus makes, stage by stage: as literals, since users' caches are found by them.

A name that changes here means that every user's datasets of that stage, and of all stages after it, are computed anew.
If nothing of the bytes has changed, keep the name (leave a new setting out of the identity at its default). If they
have, raise the STAGE_VERSION of the stage, replace the literals from there on, and say so in CHANGELOG.md: "caches of
… are computed again". If a new version of `tokenizers` or `transformers` is what changed them, that is true for users,
too.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from alm_pipeline.config import (
    AlmConfig,
    CorpusConfig,
    DeduplicationConfig,
    FilesSource,
    ObjectiveConfig,
    ScoreConfig,
    StudentConfig,
    TrainConfig,
)
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.rounds.writing import WriterChoice, Writing

ROWS = 300
"""of each model's embedding"""
PLAIN = {
    "examples": "texts-ffeff33066783070",
    "teacher_tokens": "texts-teacher-f04b3f78783a8c11",
    "student_tokens": "texts-student-76575f63de160072",
    "alignments": "texts-teacher-to-student-6bcf3643f6089156",
    "scores": "texts-teacher-3fe85aa5edae269c",
    "student": "student-from-teacher-on-texts-28ef7798b46ef9d7",
}
MADE = {
    "tokenizer": "student-bytes-31cd084242861265",
    "signatures": "texts-a721065dadb8b69b",
    "decisions": "texts-c4d521d03e7f7cb5",
    "pair biases": "texts-teacher-to-student-bytes-a97159cfd8fb3d6b",
    "written": "texts-by-student-79b2200efb9b5608",
    "examples": "texts-77c1e3f65f999647",
    "teacher_tokens": "texts-teacher-d8ff227e7dbd23f7",
    "student_tokens": "texts-student-bytes-e3e5b65b5de05fa1",
    "alignments": "texts-teacher-to-student-bytes-4f83ba2b0991c974",
    "scores": "texts-teacher-5a24743ae3c0275c",
    "student": "student-from-teacher-on-texts-ae3f6271da5864ad",
}


def write_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> None:
    """Write a byte-level BPE whose files are the same whatever trains or saves tokenizers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def write_model(folder: Path, merges: list[tuple[str, str]], value: float) -> str:
    """Write a model folder of literal bytes: no weights are needed to name anything, but their hash is."""
    folder.mkdir()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": ROWS, **sizes}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    save_file({"model.embed_tokens.weight": np.full((ROWS, 8), value, np.float32)}, folder / "model.safetensors")
    write_tokenizer(folder, merges)
    return str(folder)


@pytest.fixture
def config(tmp_path: Path) -> AlmConfig:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f'{{"text": "The text number {number}."}}\n' for number in range(20)))
    return AlmConfig(
        corpus=CorpusConfig(name="texts", source=FilesSource(urls=(str(file),)), max_bytes=200),
        teacher=write_model(tmp_path / "teacher", [("t", "e"), ("te", "x")], 0.5),
        student=StudentConfig(model=write_model(tmp_path / "student", [("n", "u")], 0.25)),
        score=ScoreConfig(dtype="float32"),
        train=TrainConfig(steps=10),
    )


def names(pipeline: Pipeline) -> dict[str, str]:
    return {role: dataset.name for role, dataset in pipeline.caches.items()} | {"student": pipeline.student.name}


def test_names_of_a_run(config: AlmConfig, tmp_path: Path) -> None:
    assert names(Pipeline(config, str(tmp_path / "root"))) == PLAIN


def test_names_of_what_is_made_besides(config: AlmConfig, tmp_path: Path) -> None:
    """A tokenizer of bytes, what documents are compared by, the biases of pairs, what the student's model writes."""
    student = config.student.model_copy(update={"tokenizer": "bytes"})
    corpus = config.texts.model_copy(update={"deduplicate": DeduplicationConfig(near=False)})
    chosen = {"corpus": corpus, "student": student, "objective": ObjectiveConfig(chunking="pair_bias")}
    run = Pipeline(config.model_copy(update=chosen), str(tmp_path / "root"))
    run.train_tokenizer()
    made = {"tokenizer": run.made_tokenizer, "signatures": run.signatures, "decisions": run.decisions}
    made |= {"pair biases": run.stored_pair_biases}
    written = Writing(config, str(tmp_path / "root"), WriterChoice("student"), prompts=8, held_out=2)
    found = {role: stored.name for role, stored in made.items() if stored} | {"written": written.datasets[0].name}
    assert found | names(run) == MADE
