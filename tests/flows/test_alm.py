"""The flow on a real (ephemeral) Prefect server: all stages, resuming, parameters."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from prefect.client.schemas.objects import Artifact
from prefect.exceptions import ParameterTypeError

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from flows import artifacts, plan_of_run
from flows.alm import alm
from storage.errors import UserError

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def test_the_whole_flow(config: AlmConfig, tmp_path: Path, shown: Callable[[str], list[Artifact]]) -> None:
    result = alm(config=config, storage=str(tmp_path))
    assert result["examples"] == 80
    assert result["aligned_share"] == 1.0
    assert set(result["bits_per_byte"]) == {"teacher", "student_before", "student_after"}
    assert set(result["seconds"]) >= {"shard", "tokenize teacher", "tokenize student", "align", "score", "train"}
    assert (Path(result["places"]["student"]) / "model.safetensors").is_file()
    (table,) = shown("alm-summary")
    assert "held-out bits per byte" in table.data
    assert "planned teacher tokens" in table.data
    planned = {each["what"]: each for each in result["planned"]}
    assert planned["teacher tokens"]["planned"] == pytest.approx(result["teacher_tokens"], rel=0.15)
    (plan,) = shown("alm-plan")
    assert '"tokenize teacher"' in plan.data
    assert '"missing"' in plan.data
    (text,) = shown("alm-report")
    assert "- bytes aligned: **100.00%**" in text.data
    assert f"- student: `{result['places']['student']}`" in text.data
    pictures = re.findall(r"!\[(.*?)\]\(data:image/png;base64,(.*?)\)", text.data)
    assert [name for name, _ in pictures] == ["Aligned chunks of an example", "Training curves of the student"]
    assert all(Image.open(io.BytesIO(base64.b64decode(content))).width > 400 for _, content in pictures)


def test_artifacts_that_fail_do_not_fail_the_run(
    config: AlmConfig,
    tmp_path: Path,
    shown: Callable[[str], list[Artifact]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'PIL'")

    monkeypatch.setattr(artifacts, "_draw_alignment", fail)
    monkeypatch.setattr(artifacts, "create_table_artifact", fail)
    monkeypatch.setattr(plan_of_run, "create_table_artifact", fail)
    result = alm(config=config, storage=str(tmp_path), until="scores")
    assert result["examples"] == 80
    assert "the alignment can't be shown: ModuleNotFoundError: No module named 'PIL'" in caplog.text
    assert "the table can't be shown" in caplog.text
    assert "the plan can't be shown: ModuleNotFoundError" in caplog.text
    (text,) = shown("alm-report")
    assert "bytes aligned" in text.data
    assert "Aligned chunks of an example" not in text.data


def test_until_scores_writes_no_student_and_a_later_run_continues_from_there(config: AlmConfig, tmp_path: Path) -> None:
    result = alm(config=config, storage=str(tmp_path), until="scores")
    assert result["bits_per_byte"] is None
    assert not (tmp_path / "students").exists()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    alm(config=config, storage=str(tmp_path))
    after = {file: file.stat().st_mtime_ns for file in before}
    assert after == before


def test_a_finished_run_is_answered_without_a_pipeline(
    config: AlmConfig,
    tmp_path: Path,
    shown: Callable[[str], list[Artifact]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    store = str(tmp_path / "store")
    first = alm(config=config, storage=store, until="scores")

    def opened(*_: object) -> None:
        raise AssertionError("the run was not answered from what is recorded")

    with monkeypatch.context() as patch:
        patch.setattr("flows.execution.shared_pipeline.pipeline_of", opened)
        again = alm(config=config, storage=store, until="scores")
        with pytest.raises(AssertionError, match="not answered"):
            alm(config=config, storage=store)
    assert again == first | {"seconds": {}, "planned": []}
    assert len(shown("alm-summary")) == 2
    assert "bytes aligned: **100.00%**" in shown("alm-report")[0].data


def test_a_users_error_is_raised_unchanged_and_not_retried(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = []

    def failing(self: Pipeline, shards: object = None) -> None:
        roots.append(self.root)
        raise UserError("fix this")

    monkeypatch.setattr(Pipeline, "align", failing)
    with pytest.raises(UserError, match="fix this"):
        alm(config=config, storage=str(tmp_path))
    assert roots.count(str(tmp_path)) == 1  # the plan aligns a sample elsewhere


@pytest.mark.bad_input
def test_a_run_is_checked_before_its_first_stage(config: AlmConfig, tmp_path: Path) -> None:
    """As on a worker, where no command has checked it."""
    settings = {"train.freeze": ["none"], "corpus.source.urls": ["no/file.jsonl"]}
    with pytest.raises(UserError, match="2 problems would stop this run") as error:
        alm(config=config, storage=str(tmp_path), settings=settings)
    assert "train.freeze: none matches no parameter" in str(error.value)
    assert "no file matches no/file.jsonl" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_overrides_replace_single_values(config: AlmConfig, tmp_path: Path) -> None:
    alm(config=config, storage=str(tmp_path), until="scores", gamma=0.3, steps=2, settings={"train.seed": 5})
    with pytest.raises(UserError, match=r"train\.sed: no such setting; did you mean train\.seed"):
        alm(config=config, storage=str(tmp_path), settings={"train.sed": 5})


def test_a_misspelt_parameter_is_refused_with_its_name(config: AlmConfig, tmp_path: Path) -> None:
    content = config.model_dump(mode="json")
    content["train"]["stepz"] = 3
    with pytest.raises(ParameterTypeError, match=r"train\.stepz"):
        alm(config=content, storage=str(tmp_path))


def test_parameters_that_contradict_only_are_refused(config: AlmConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="until: scores stops before `only: train`"):
        alm(config=config, storage=str(tmp_path), only="train", until="scores")
    with pytest.raises(UserError, match="shards: needs `only: score`"):
        alm(config=config, storage=str(tmp_path), shards=[0])
    with pytest.raises(UserError, match="gpu_pool: a run with `only: score` does its work itself"):
        alm(config=config, storage=str(tmp_path), only="score", gpu_pool="gpu")
    assert list(tmp_path.iterdir()) == []
