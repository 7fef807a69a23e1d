"""The stage that makes the student: caches → a Hugging Face model folder, with its metrics and held-out results."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from alm_pipeline.config import AlmConfig
from alm_pipeline.distillation.stream import BatchStream
from alm_pipeline.distillation.trainer import train_student
from alm_pipeline.evaluation.bits_per_byte import student_bits_per_byte, teacher_bits_per_byte
from alm_pipeline.models import (
    label,
    load_model,
    load_tokenizer,
    model_identity,
    quiet_transformers,
    tokenizer_identity,
)
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.transfer.fvt import transfer_vocabulary
from storage.dataset import Dataset
from storage.folders import FolderManifest, StoredFolder
from storage.lease import Lease

STAGE_VERSION = 2
CHECKPOINTS = "checkpoints"
METRICS = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("alm", pa.float64()),
        ("kl", pa.float64()),
        ("sft", pa.float64()),
        ("chunks", pa.int64()),
        ("tokens", pa.int64()),
        ("grad_norm", pa.float64()),
        ("learning_rate", pa.float64()),
    ]
)
"""The columns of `metrics.parquet`, a row a step; `BatchLoss` says what the losses are."""


def student_folder(datasets: Mapping[str, Dataset], config: AlmConfig, tokenizer: str) -> StoredFolder:
    """The student that these caches and this configuration make, whether or not it is there yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "inputs": {name: dataset.name for name, dataset in datasets.items()},
        "model": model_identity(config.student.model),
        "source_tokenizer": tokenizer_identity(config.student.model),
        "tokenizer": tokenizer_identity(tokenizer),
        "objective": config.objective.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude={"checkpoint_steps"}),
    }
    name = f"{label(config.student.model)}-from-{label(config.teacher)}-on-{config.corpus.name}"
    return StoredFolder(datasets["scores"].root, "students", name, identity)


def distil(datasets: Mapping[str, Dataset], config: AlmConfig, tokenizer: str, student: StoredFolder) -> FolderManifest:
    """Train the student on the caches, evaluate it before and after, and save it.

    Where another process is at it, its result is waited for.
    """
    if (manifest := student.manifest()) and not student.has(CHECKPOINTS):
        return manifest
    with student.held() as lease:
        if manifest := student.manifest():
            student.remove(CHECKPOINTS)  # a kill came between the manifest and this
            return manifest
        return _distil(datasets, config, tokenizer, student, lease)


def _distil(
    datasets: Mapping[str, Dataset], config: AlmConfig, tokenizer: str, student: StoredFolder, lease: Lease
) -> FolderManifest:
    model, initialisation = initial_student(config, tokenizer)
    scorer = Scorer.of(model, tokenizer)
    before = student_bits_per_byte(datasets, scorer, "evaluate before")
    student.restore(CHECKPOINTS)
    log = train_student(
        model,
        partial(BatchStream, datasets, config.objective, config.train),
        scorer.boundary_ids_K,
        config.objective,
        config.train,
        student.path / CHECKPOINTS,
        partial(_keep_checkpoints, student, lease),
    )
    after = student_bits_per_byte(datasets, Scorer.of(model, tokenizer), "evaluate after")
    save_student(model, tokenizer, log, student.path)
    results = {
        "initialisation": initialisation,
        "held_out_bits_per_byte": {
            "teacher": teacher_bits_per_byte(datasets),
            "student_before": before,
            "student_after": after,
        },
    }
    lease.check()
    manifest = student.finish(results)
    student.remove(CHECKPOINTS)
    return manifest


def _keep_checkpoints(student: StoredFolder, lease: Lease) -> None:
    lease.check()
    student.mirror(CHECKPOINTS)


def initial_student(config: AlmConfig, tokenizer: str) -> tuple[PreTrainedModel, dict[str, int]]:
    """The student before training, and how its embeddings came about (nothing where it keeps its tokenizer)."""
    model = load_model(config.student.model, "float32", trust_remote_code=config.trust_remote_code)
    if tokenizer == config.student.model:
        return model, {}
    source, target = load_tokenizer(config.student.model), load_tokenizer(tokenizer)
    return model, transfer_vocabulary(model, source, target, config.train.seed).counts()


def save_student(model: PreTrainedModel, tokenizer: str, log: list[dict[str, float]], folder: Path) -> None:
    """A model folder that plain transformers load, and `metrics.parquet` with a row a step."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
        load_tokenizer(tokenizer).save_pretrained(folder)
    pq.write_table(pa.Table.from_pylist(log, METRICS), folder / "metrics.parquet")
