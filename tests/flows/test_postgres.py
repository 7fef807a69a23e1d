"""Prefect's server on PostgreSQL, which several machines need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig
from tests.flows.loopback import Loopback, deployed_server
from tests.flows.postgres import missing, postgres

pytestmark = [
    pytest.mark.flow,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]


@pytest.fixture
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with postgres() as url, deployed_server(tmp_path_factory.mktemp("prefect"), url) as server:
        yield server


def test_a_run_on_postgres(loopback: Loopback, config: AlmConfig, tmp_path: Path) -> None:
    loopback.worker("alm")
    run = loopback.run("alm/distill", config=config.model_dump(mode="json"), storage=str(tmp_path))
    state = loopback.finished(run)
    assert state.is_completed(), f"{state.message}\n{loopback.logs()}"
    assert any(tmp_path.glob("students/*/manifest.json"))
    loopback.kill_workers()
    loopback.restart()  # the run is in the database
    assert loopback.state(run).is_completed()
    assert not list(loopback.folder.glob("*.db"))
