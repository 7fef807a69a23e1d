"""Publishing with the real client to a fake Hub: which files are sent, and what happens after a refusal."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from alm_pipeline.config import AlmConfig, PublishConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.student import publish as publishing
from alm_pipeline.training.student.publish import push, stored_student
from storage.errors import UserError
from tests.alm_pipeline.models.hub import TOKEN, Hub, hub


@pytest.fixture(scope="module")
def finished(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = Pipeline(config, str(tmp_path_factory.mktemp("data")))
    pipeline.run()
    return pipeline


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub() as here:
        yield here


def client(server: Hub, token: str = TOKEN) -> HfApi:
    return HfApi(endpoint=server.endpoint, token=token)


def test_only_the_students_files_are_sent(finished: Pipeline, server: Hub) -> None:
    student = finished.student
    (student.path / "checkpoints" / "checkpoint-6").mkdir(parents=True)
    (student.path / "checkpoints" / "checkpoint-6" / "optimizer.pt").write_bytes(b"large")
    url = push(student, "me/student", private=True, api=client(server))
    student.remove("checkpoints")
    assert "me/student" in url
    assert server.private
    manifest = student.manifest()
    assert manifest is not None
    assert server.files.keys() == manifest.files.keys()
    assert {"README.md", "model.safetensors", "generation_config.json", "curves.png"} <= server.files.keys()
    changed = {name for name, content in server.files.items() if content != (student.path / name).read_bytes()}
    assert changed == {"README.md"}
    assert 'name = "me/student"' in server.files["README.md"].decode()


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "set HF_TOKEN to a token with write access"), (403, "the token has no write access there")],
)
def test_a_refusal_keeps_the_student(finished: Pipeline, server: Hub, status: int, message: str) -> None:
    server.refuses = status
    with pytest.raises(UserError, match=message) as caught:
        push(finished.student, "me/student", api=client(server))
    assert f"The student is finished, in {finished.student.url}" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert finished.student.manifest() is not None


def test_an_unreachable_hub_is_reported(finished: Pipeline, server: Hub) -> None:
    away = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(UserError, match="the Hub refused the student"):
        push(finished.student, "me/student", api=away)


def test_a_run_after_a_refusal_publishes_without_training_again(
    finished: Pipeline, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finished.config.model_copy(update={"publish": PublishConfig(repo="me/student", private=False)})
    again = Pipeline(config, finished.root)
    assert again.student.name == finished.student.name
    monkeypatch.setattr(publishing, "HfApi", lambda: client(server))
    monkeypatch.setattr("alm_pipeline.training.stage._train_and_save", None)  # calling it would fail
    server.refuses = 401
    with pytest.raises(UserError, match="nothing is trained again"):
        again.run()
    server.refuses = None
    again.run()
    assert "model.safetensors" in server.files
    assert server.private is False


def test_pushing_by_url_needs_a_finished_student(finished: Pipeline, server: Hub, tmp_path: Path) -> None:
    push(stored_student(finished.student.url), "me/student", api=client(server))
    assert "model.safetensors" in server.files
    for url in (str(tmp_path / "students" / "nothing-0"), finished.examples.url):
        with pytest.raises(UserError, match="is not the folder of a finished student"):
            stored_student(url)
