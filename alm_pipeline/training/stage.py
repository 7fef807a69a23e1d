"""The stage that makes the student: caches → a Hugging Face model folder, with its metrics and held-out results."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.bits_per_byte import student_bits_per_byte, teacher_bits_per_byte
from alm_pipeline.models.files import label, load_tokenizer, model_identity, tokenizer_identity, weights_dtype
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.vocabulary import Vocabulary
from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.objective.chunking.ends import ChunkEnds, PairBiasEnds, SpaceEnds
from alm_pipeline.objective.chunking.pair_bias_stage import read_pair_biases
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop.checkpoints import CheckpointKeeper, checkpoint_names
from alm_pipeline.training.loop.evaluations import Evaluations
from alm_pipeline.training.loop.trackers import RunLog, hyperparameters
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.parallel.processes import this_process, told_by_first, wait_for_all
from alm_pipeline.training.student.curves import PICTURE, draw_curves, read_run
from alm_pipeline.training.student.evaluator import Evaluator
from alm_pipeline.training.student.model_card import Distilled, write_card
from alm_pipeline.training.student.save import round_weights, save_speed, save_student
from alm_pipeline.transfer.bytes.byte_model import put_on_bytes
from alm_pipeline.transfer.fvt import special_counterparts
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.swap import swap_tokenizer
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from storage.dataset import Dataset
from storage.folders import FolderManifest, StoredFolder
from storage.lease import Lease

STAGE_VERSION = 5
CHECKPOINTS = "checkpoints"
RUNS = "runs"
"""what is not the same twice: the speed of the steps, and what TensorBoard reads"""


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
        **({"initialization": Initialization.of(config.student).identity()} if config.student.tokenizer else {}),
        **({"byte_level": {"ngram_embeddings": student.ngram_embeddings}} if student.is_byte_level else {}),
        "objective": config.objective.model_dump(mode="json"),
        "train": config.train.identity(),
    }
    if choosing := config.evaluation.identity():
        identity["evaluation"] = choosing
    name = f"{label(config.student.model)}-from-{label(config.teacher)}-on-{config.corpus.name}"
    return StoredFolder(datasets["scores"].root, "students", name, identity)


def train(
    datasets: Mapping[str, Dataset],
    config: AlmConfig,
    tokenizer: str,
    student: StoredFolder,
    pair_biases: StoredFolder | None = None,
) -> FolderManifest:
    """Train the student on the caches, evaluate it before and after, and save it.

    `pair_biases` is there for the chunking that asks for them. Where another run is at it, its result is waited for.
    Of several processes that train together, all call this: the first one does all but its part of the training alone.
    """
    if not this_process().is_first:
        return _help(datasets, config, tokenizer, student, pair_biases)
    if (manifest := student.manifest()) and not student.has(CHECKPOINTS):
        return told_by_first(manifest)
    with student.held() as lease:
        if manifest := student.manifest():
            student.remove(CHECKPOINTS)  # a kill came between the manifest and this
            return told_by_first(manifest)
        told_by_first(None)
        return told_by_first(_train_and_save(datasets, config, tokenizer, student, lease, pair_biases))


def _help(
    datasets: Mapping[str, Dataset],
    config: AlmConfig,
    tokenizer: str,
    student: StoredFolder,
    pair_biases: StoredFolder | None,
) -> FolderManifest:
    """Take part in the first process's training, if there is one; returns what it has."""
    manifest: FolderManifest | None = told_by_first(None)
    if manifest is None:
        model, _ = initial_student(config, tokenizer)
        _share_checkpoints(student)
        evaluations = Evaluations(None, config.evaluation)
        _train(model, datasets, config, tokenizer, student, chunk_ends(config, tokenizer, pair_biases), evaluations)
        manifest = told_by_first(None)
    assert manifest
    return manifest


def _share_checkpoints(student: StoredFolder) -> None:
    """Let all machines have the checkpoints that the first process goes on from."""
    process = this_process()
    if process.is_first:
        student.restore(CHECKPOINTS)
        if process.is_on_many_machines:
            student.mirror(CHECKPOINTS, checkpoint_names(student.path / CHECKPOINTS))
    wait_for_all()
    if process.leads_another_machine:
        student.restore_anew(CHECKPOINTS)  # what is there may be an earlier run's
    wait_for_all()


def _train_and_save(
    datasets: Mapping[str, Dataset],
    config: AlmConfig,
    tokenizer: str,
    student: StoredFolder,
    lease: Lease,
    pair_biases: StoredFolder | None,
) -> FolderManifest:
    run_log = RunLog(config.log, student.name, student.path / RUNS, hyperparameters(config))
    run_log.check()
    model, initialization = initial_student(config, tokenizer)
    ends = chunk_ends(config, tokenizer, pair_biases)
    vocabulary = Vocabulary.of(model, tokenizer)
    evaluations = Evaluations(Evaluator(datasets, config, vocabulary, tokenizer, ends), config.evaluation)
    _share_checkpoints(student)
    with _keeper(student, lease, config, evaluations) as keeper:
        log = _train(model, datasets, config, tokenizer, student, ends, evaluations, keeper.keep, run_log)
        dtype = weights_dtype(config.student.model) if config.train.save_dtype == "source" else config.train.save_dtype
        round_weights(model, dtype)
        after = student_bits_per_byte(datasets, Scorer(model, vocabulary), "evaluate after")
        save_student(model, tokenizer, log, student.path, dtype)
        save_speed(log, student.path / RUNS)
        evaluations.write(student.path)
    results = {
        "initialization": initialization,
        "held_out_bits_per_byte": {
            "teacher": teacher_bits_per_byte(datasets),
            "student_before": evaluations.before,
            "student_after": after,
        },
    }
    _tell(Distilled(config, datasets, student, results))
    lease.check()
    student.upload(RUNS)
    manifest = student.finish(results)
    student.remove(CHECKPOINTS)
    return manifest


def _train(
    model: PreTrainedModel,
    datasets: Mapping[str, Dataset],
    config: AlmConfig,
    tokenizer: str,
    student: StoredFolder,
    ends: ChunkEnds | None,
    evaluations: Evaluations,
    on_checkpoint: Callable[[], None] = lambda: None,
    run_log: RunLog | None = None,
) -> list[dict[str, float]]:
    return train_student(
        model,
        partial(BatchStream, datasets, config.objective, config.train, ends=ends),
        Vocabulary.of(model, tokenizer),
        config.objective,
        config.train,
        student.path / CHECKPOINTS,
        on_checkpoint,
        _live_teacher(config, tokenizer),
        evaluations,
        run_log,
    )


def _tell(told: Distilled) -> None:
    """The picture and the card, of the files that are there."""
    run = read_run(str(told.student.path), told.results["held_out_bits_per_byte"])
    # speeds are not the same twice, and the student's files are
    picture = draw_curves([replace(run, name=told.student.name, speed={})])
    (told.student.path / PICTURE).write_bytes(picture)
    write_card(told)


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


def _keeper(student: StoredFolder, lease: Lease, config: AlmConfig, evaluations: Evaluations) -> CheckpointKeeper:
    def upload(names: Collection[str]) -> None:
        lease.check()
        student.mirror(CHECKPOINTS, names)

    def best_step() -> int | None:
        return evaluations.best_step if config.evaluation.student == "best" else None

    return CheckpointKeeper(student.path / CHECKPOINTS, config.train.keep_checkpoints, best_step, upload)


def initial_student(config: AlmConfig, tokenizer: str) -> tuple[PreTrainedModel, dict[str, int]]:
    """The student before training, and how its embeddings came about (nothing where it keeps its tokenizer)."""
    model = load_model(config.student.model, "float32", trust_remote_code=config.trust_remote_code)
    if tokenizer == config.student.model:
        return model, {}
    source, target = load_tokenizer(config.student.model), load_tokenizer(tokenizer)
    initialization = Initialization.of(config.student, trust_remote_code=config.trust_remote_code)
    if config.student.is_byte_level:
        ngrams, seed = config.student.ngram_embeddings, config.train.seed
        return model, put_on_bytes(model, source, target, initialization, ngram_embeddings=ngrams, seed=seed)
    return model, swap_tokenizer(model, source, target, initialization, config.train.seed).counts()
