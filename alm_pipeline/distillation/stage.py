"""The stage that makes the student: caches → a Hugging Face model folder, with its metrics and held-out results."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import AlmConfig
from alm_pipeline.distillation.live_teacher import LiveTeacher
from alm_pipeline.distillation.result import save_student
from alm_pipeline.distillation.stream import BatchStream
from alm_pipeline.distillation.training import train_student
from alm_pipeline.evaluation.bits_per_byte import student_bits_per_byte, teacher_bits_per_byte
from alm_pipeline.models import (
    label,
    load_model,
    load_tokenizer,
    model_identity,
    tokenizer_identity,
)
from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.objective.chunk_ends import ChunkEnds, PairBiasEnds, SpaceEnds
from alm_pipeline.objective.pair_bias_stage import read_pair_biases
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.scoring.vocabulary import Vocabulary
from alm_pipeline.tokenization.byte_view import ByteView, byte_view
from alm_pipeline.transfer.byte_model import put_on_bytes
from alm_pipeline.transfer.fvt import special_counterparts, transfer_vocabulary
from storage.dataset import Dataset
from storage.folders import FolderManifest, StoredFolder
from storage.lease import Lease

STAGE_VERSION = 3
CHECKPOINTS = "checkpoints"


def student_folder(
    datasets: Mapping[str, Dataset], config: AlmConfig, tokenizer: str, pair_biases: StoredFolder | None = None
) -> StoredFolder:
    """The student that these caches and this configuration make, whether or not it is there yet."""
    inputs, student = {name: dataset.name for name, dataset in datasets.items()}, config.student
    identity = {
        "stage_version": STAGE_VERSION,
        "inputs": inputs | ({"pair_biases": pair_biases.name} if pair_biases else {}),
        "model": model_identity(config.student.model),
        "source_tokenizer": tokenizer_identity(config.student.model),
        "tokenizer": tokenizer_identity(tokenizer),
        **({"byte_level": {"ngram_embeddings": student.ngram_embeddings}} if student.is_byte_level else {}),
        "objective": config.objective.model_dump(mode="json"),
        "train": config.train.identity(),
    }
    name = f"{label(config.student.model)}-from-{label(config.teacher)}-on-{config.corpus.name}"
    return StoredFolder(datasets["scores"].root, "students", name, identity)


def distil(
    datasets: Mapping[str, Dataset],
    config: AlmConfig,
    tokenizer: str,
    student: StoredFolder,
    pair_biases: StoredFolder | None = None,
) -> FolderManifest:
    """Train the student on the caches, evaluate it before and after, and save it.

    `pair_biases` is there for the chunking that asks for them. Where another process is at it, its result is waited
    for.
    """
    if (manifest := student.manifest()) and not student.has(CHECKPOINTS):
        return manifest
    with student.held() as lease:
        if manifest := student.manifest():
            student.remove(CHECKPOINTS)  # a kill came between the manifest and this
            return manifest
        return _distil(datasets, config, tokenizer, student, lease, pair_biases)


def _distil(
    datasets: Mapping[str, Dataset],
    config: AlmConfig,
    tokenizer: str,
    student: StoredFolder,
    lease: Lease,
    pair_biases: StoredFolder | None,
) -> FolderManifest:
    model, initialisation = initial_student(config, tokenizer)
    vocabulary = Vocabulary.of(model, tokenizer)
    before = student_bits_per_byte(datasets, Scorer(model, vocabulary), "evaluate before")
    student.restore(CHECKPOINTS)
    log = train_student(
        model,
        partial(BatchStream, datasets, config.objective, config.train, ends=chunk_ends(config, tokenizer, pair_biases)),
        vocabulary,
        config.objective,
        config.train,
        student.path / CHECKPOINTS,
        partial(_keep_checkpoints, student, lease),
        _live_teacher(config, tokenizer),
    )
    after = student_bits_per_byte(datasets, Scorer(model, vocabulary), "evaluate after")
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


def chunk_ends(config: AlmConfig, tokenizer: str, pair_biases: StoredFolder | None) -> ChunkEnds | None:
    """Where chunks may end, for a chunking that looks at tokens. `tokenizer` is the student's."""
    if pair_biases:
        return PairBiasEnds(read_pair_biases(pair_biases), config.objective.gamma)
    if config.objective.chunking != "space":
        return None
    return SpaceEnds(*(view.boundary(view.size) for view in _views(config.teacher, tokenizer)))


def _views(*tokenizers: str) -> list[ByteView]:
    return [byte_view(load_tokenizer(name).backend_tokenizer) for name in tokenizers]


def _live_teacher(config: AlmConfig, tokenizer: str) -> LiveTeacher | None:
    if not config.objective.is_live:
        return None
    model = load_model(config.teacher, config.score.dtype, trust_remote_code=config.trust_remote_code)
    mapping_V = _mapping(config.teacher, tokenizer) if "mined" in config.objective.terms else None
    return LiveTeacher(model, Vocabulary.of(model, config.teacher).rows, mapping_V)


def _mapping(teacher: str, student: str) -> Tensor:
    """The teacher's token for each of the student's, for MinED: minutes where vocabularies are large and differ."""
    specials = special_counterparts(load_tokenizer(teacher), load_tokenizer(student))
    teacher_view, student_view = _views(teacher, student)
    return torch.from_numpy(mined_mapping(teacher_view, student_view, specials))


def _keep_checkpoints(student: StoredFolder, lease: Lease) -> None:
    lease.check()
    student.mirror(CHECKPOINTS)


def initial_student(config: AlmConfig, tokenizer: str) -> tuple[PreTrainedModel, dict[str, int]]:
    """The student before training, and how its embeddings came about (nothing where it keeps its tokenizer)."""
    model = load_model(config.student.model, "float32", trust_remote_code=config.trust_remote_code)
    if tokenizer == config.student.model:
        return model, {}
    source, target = load_tokenizer(config.student.model), load_tokenizer(tokenizer)
    if config.student.is_byte_level:
        ngrams, seed = config.student.ngram_embeddings, config.train.seed
        return model, put_on_bytes(model, source, target, ngram_embeddings=ngrams, seed=seed)
    return model, transfer_vocabulary(model, source, target, config.train.seed).counts()
