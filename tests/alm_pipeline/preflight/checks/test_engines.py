"""What the preflight finds about the engine that scores, before anything is prepared."""

from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.config import AlmConfig, ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.findings import Finding
from tests.alm_pipeline.scoring.served.small_server import SmallServer, running

pytestmark = pytest.mark.bad_input


def findings(config: AlmConfig, root: Path, **score: Any) -> list[Finding]:
    """Findings about the engine."""
    changed = config.model_copy(update={"score": ScoreConfig.model_validate({"dtype": "float32", **score})})
    found = Pipeline(changed, str(root)).preflight(("prepare", "score"))
    return [each for each in found if str(each.field).startswith("score")]


def test_a_server_that_serves_the_teacher_is_no_finding_and_another_one_is(config: AlmConfig, tmp_path: Path) -> None:
    server = SmallServer(ModelReference(config.teacher), tmp_path)
    with running(server) as url:
        settings = {"engine": "http", "served": {"urls": [url]}}
        assert findings(config, tmp_path, **settings) == []
        server.has_plugin = False
        (found,) = findings(config, tmp_path, **settings)
    assert found.severity == "error"
    assert "the plugin alm-scores is not installed" in found.sentence


def test_a_server_that_is_away_is_a_warning(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alm_pipeline.preflight.checks.engines._WAIT_S", 0.2)
    with running(SmallServer(ModelReference(config.teacher), tmp_path)) as url:
        pass
    (found,) = findings(config, tmp_path, engine="http", served={"urls": [url]})
    assert (found.severity, found.field) == ("warning", "score.served.urls")
    assert "can't be reached" in found.sentence


def test_a_missing_command_and_a_missing_package_are_errors(config: AlmConfig, tmp_path: Path) -> None:
    (found,) = findings(config, tmp_path, engine="http", served={"command": ["no-such-server"]})
    assert (found.severity, found.field) == ("error", "score.served.command")
    (found, *_) = findings(config, tmp_path, engine="vllm")
    assert (found.severity, found.field) == ("error", "score.engine")
    assert "vLLM is not installed in this environment" in found.sentence
