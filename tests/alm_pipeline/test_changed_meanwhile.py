"""What a stage read must be what its result is named by: a file that changes in the middle of a stage ends it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, StudentConfig, TrainedTokenizer
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.new_tokenizer import stage as tokenizer_stage
from alm_pipeline.objective.chunking import pair_bias_stage
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.training import stage as training_stage
from alm_pipeline.transfer import task_arithmetic, zero_step
from storage.errors import UserError


@dataclass(frozen=True)
class Models:
    """Copies of the models, which a test may change."""

    teacher: Path
    student: Path
    config: AlmConfig


@pytest.fixture(scope="module")
def caches(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that a student is made from."""
    root = tmp_path_factory.mktemp("caches") / "store"
    Pipeline(config, str(root)).cache()
    return root


@pytest.fixture
def models(config: AlmConfig, tmp_path: Path) -> Models:
    # under their names, since those are parts of the datasets' names
    teacher = shutil.copytree(config.teacher, tmp_path / "models" / Path(config.teacher).name)
    student = shutil.copytree(config.student.model, tmp_path / "models" / Path(config.student.model).name)
    config = config.model_copy(update={"teacher": str(teacher), "student": StudentConfig(model=str(student))})
    return Models(teacher, student, config)


def _weights(folder: Path) -> Path:
    """Put other weights of the same size and time of change into their place."""
    file, other = folder / "model.safetensors", folder / "other.part"
    tensors = {name: values + 1 for name, values in load_file(file).items()}
    save_file(tensors, other, metadata={"format": "pt"})
    info = file.stat()
    assert other.stat().st_size == info.st_size
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.replace(file)
    return file


def _config(folder: Path) -> Path:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 0.5}))
    return folder / "config.json"


def _tokenizer(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["merges"].pop()
    file.write_text(json.dumps(state))
    return file


def _generation(folder: Path) -> Path:
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    return folder / "generation_config.json"


def _readme(folder: Path) -> Path:
    (folder / "README.md").write_text("other")
    return folder / "README.md"


Change = Callable[[Path], Path]


def _then(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, change: Callable[[], object]) -> None:
    """Change something after the first call of a function of a stage."""
    call, done = getattr(place, name), list[bool]()

    def called(*arguments: Any, **named: Any) -> Any:
        result = call(*arguments, **named)
        if not done:
            done.append(True)
            change()
        return result

    monkeypatch.setattr(place, name, called)


def _fails(run: Callable[[], object], file: str) -> None:
    with pytest.raises(UserError, match=rf"{file}.*was changed while it was in use"):
        run()


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [pytest.param(_weights, id="weights"), pytest.param(_config, id="configuration")])
def test_scores_of_a_teacher_that_changes_are_not_kept(
    change: Change, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    pipeline.shard()
    pipeline.tokenize("teacher")
    _then(monkeypatch, Scorer, "score", lambda: change(models.teacher))
    _fails(pipeline.score, str(models.teacher))
    assert not list(Path(pipeline.scores.url).glob("*"))
    # and run again they are another teacher's
    again = Pipeline(models.config, str(tmp_path / "store"))
    again.score()
    assert again.scores.name != pipeline.scores.name


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [pytest.param(_weights, id="weights"), pytest.param(_config, id="configuration")])
def test_a_teacher_that_changes_before_it_is_loaded_is_not_used(change: Change, models: Models, tmp_path: Path) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    pipeline.shard()
    pipeline.tokenize("teacher")
    assert pipeline.scores.name
    change(models.teacher)
    _fails(pipeline.score, str(models.teacher))


def test_other_files_of_a_teacher_may_change(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    pipeline.shard()
    pipeline.tokenize("teacher")
    _then(monkeypatch, Scorer, "score", lambda: (_readme(models.teacher), _generation(models.teacher)))
    pipeline.score()
    name = pipeline.scores.name
    assert Pipeline(models.config, str(tmp_path / "store")).scores.name == name


@pytest.mark.bad_input
def test_tokens_of_a_tokenizer_that_changes_are_not_finished(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    pipeline.shard()
    _then(monkeypatch, ByteEncoder, "encode", lambda: _tokenizer(models.teacher))
    _fails(lambda: pipeline.tokenize("teacher"), "tokenizer.json")
    assert not pipeline.tokens("teacher").manifest()


@pytest.mark.bad_input
def test_a_process_with_other_files_does_not_tokenize(models: Models, tmp_path: Path) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    pipeline.shard()
    tokens = pipeline.tokens("teacher")
    _tokenizer(models.teacher)
    other = Pipeline(models.config, str(tmp_path / "store"))
    other.__dict__["_tokens"] = {"teacher": tokens}  # as it is sent to another process
    with pytest.raises(UserError, match=f"its files differ from those that {tokens.name} is made with"):
        other.tokenize("teacher", [0])


@pytest.mark.bad_input
def test_a_process_with_other_files_does_not_score(models: Models, tmp_path: Path) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    pipeline.shard()
    pipeline.tokenize("teacher")
    scores = pipeline.scores
    _weights(models.teacher)
    other = Pipeline(models.config, str(tmp_path / "store"))
    other.__dict__["scores"] = scores
    with pytest.raises(UserError, match=f"its files differ from those that {scores.name} is made with"):
        other.score([0])


@pytest.mark.bad_input
def test_a_tokenizer_made_of_one_that_changes_is_not_finished(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = StudentConfig(model=str(models.student), tokenizer=TrainedTokenizer(vocab_size=300))
    pipeline = Pipeline(models.config.model_copy(update={"student": student}), str(tmp_path / "store"))
    _then(monkeypatch, tokenizer_stage, "train_tokenizer", lambda: _tokenizer(models.student))
    _fails(pipeline.train_tokenizer, "tokenizer.json")
    assert pipeline.made_tokenizer
    assert not pipeline.made_tokenizer.manifest()


@pytest.mark.bad_input
def test_pair_biases_of_a_tokenizer_that_changes_are_not_finished(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = models.config.objective.model_copy(update={"chunking": "pair_bias"})
    pipeline = Pipeline(models.config.model_copy(update={"objective": objective}), str(tmp_path / "store"))
    pipeline.shard()
    for side in ("teacher", "student"):
        pipeline.tokenize(side)  # type: ignore[arg-type]
    pipeline.align()
    _then(monkeypatch, pair_bias_stage, "pair_biases", lambda: _tokenizer(models.student))
    _fails(pipeline.pair_biases, "tokenizer.json")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_weights, id="weights"),
        pytest.param(_config, id="configuration"),
        pytest.param(_tokenizer, id="tokenizer"),
        pytest.param(_generation, id="generation settings"),
    ],
)
def test_a_student_whose_model_changes_is_not_finished(
    change: Change, models: Models, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(caches, tmp_path / "store")
    train = models.config.train.model_copy(update={"steps": 1})
    config = models.config.model_copy(update={"train": train})
    pipeline = Pipeline(config, str(tmp_path / "store"))
    name = pipeline.student.name
    _then(monkeypatch, training_stage, "train_student", lambda: change(models.student))
    with pytest.raises(UserError, match="was changed while it was in use"):
        pipeline.train()
    assert not pipeline.student.manifest()
    assert Pipeline(config, str(tmp_path / "store")).student.name != name


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("whose", "change"),
    [
        pytest.param("student", _weights, id="weights"),
        pytest.param("student", _tokenizer, id="tokenizer"),
        pytest.param("teacher", _tokenizer, id="new tokenizer"),
    ],
)
def test_a_transfer_of_what_changes_is_not_written(
    whose: str, change: Change, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _then(monkeypatch, zero_step, "swap_tokenizer", lambda: change(getattr(models, whose)))
    _fails(lambda: zero_step.transfer(str(models.student), str(models.teacher), tmp_path / "made"), "models/")
    assert not (tmp_path / "made").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [pytest.param(_weights, id="weights"), pytest.param(_tokenizer, id="tokenizer")])
def test_task_arithmetic_of_what_changes_is_not_written(
    change: Change, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(models.student)] * 3
    _then(monkeypatch, task_arithmetic, "write_weights", lambda: change(models.student))
    _fails(lambda: task_arithmetic.apply_transfer(*names, tmp_path / "made"), "models/")
    assert not (tmp_path / "made").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [pytest.param(_weights, id="weights"), pytest.param(_tokenizer, id="tokenizer")])
def test_a_model_that_changes_is_not_measured(
    change: Change, models: Models, corpus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _then(monkeypatch, Scorer, "score", lambda: change(models.student))
    _fails(lambda: compare_models([str(models.student)], [texts_at(corpus_url, "text", 4)]), "models/")


def test_generation_settings_and_saved_settings_only_rename_the_student(models: Models, tmp_path: Path) -> None:
    def names() -> tuple[str, str, str]:
        pipeline = Pipeline(models.config, str(tmp_path / "store"))
        return pipeline.tokens("student").name, pipeline.scores.name, pipeline.student.name

    before = names()
    _generation(models.teacher)
    assert names() == before
    _generation(models.student)
    other = names()
    assert other[:2] == before[:2]
    assert other[2] != before[2]
    settings = json.loads((models.student / "tokenizer_config.json").read_text())
    (models.student / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 99}))
    last = names()
    assert last[:2] == before[:2]
    assert last[2] not in (before[2], other[2])


def test_a_transfer_to_a_copy_of_the_own_tokenizer_has_a_name_of_its_own(models: Models, tmp_path: Path) -> None:
    """It is named in another way, and then exchanged: rows without a token are gone."""

    def student(tokenizer: str | None) -> str:
        setting = StudentConfig(model=str(models.student), tokenizer=tokenizer)
        return Pipeline(models.config.model_copy(update={"student": setting}), str(tmp_path / "store")).student.name

    copy = shutil.copytree(models.student, tmp_path / "copy")
    assert student(str(models.student)) == student(None)
    assert student(str(copy)) != student(None)


def test_what_another_process_gets_of_a_model_is_its_name(models: Models) -> None:
    import pickle

    reference = ModelReference(str(models.teacher))
    identity = reference.identity
    sent = pickle.dumps(reference)
    _weights(models.teacher)
    received: ModelReference = pickle.loads(sent)
    assert received == reference
    assert received.identity != identity == reference.identity
    assert torch.is_tensor(received.load("float32").get_input_embeddings().weight)


@pytest.mark.bad_input
def test_a_machine_that_would_make_another_student_does_not_take_part(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(models.config, str(tmp_path / "store"))
    name = pipeline.student.name
    _weights(models.student)
    other = Pipeline(models.config, str(tmp_path / "store"))
    monkeypatch.setattr(training_stage, "broadcast_from_first", lambda _: name)  # what the first machine sends
    with pytest.raises(UserError, match=rf"it would make {other.student.name} instead of {name}"):
        other.train()
