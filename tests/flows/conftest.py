"""One Prefect test server for all flow tests, without heartbeat threads; real servers for the modules that need one."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from tests.flows.loopback import Loopback, deployed_server


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def shown(prefect_server: None) -> Callable[[str], list[Artifact]]:
    """A function that returns the artifacts of this test's runs whose keys begin with a prefix, the newest first."""
    start = datetime.now(UTC)

    def since_start(key: str) -> list[Artifact]:
        named = ArtifactFilter(key=ArtifactFilterKey(like_=f"{key}%"))
        with get_client(sync_client=True) as client:
            artifacts = client.read_artifacts(artifact_filter=named, sort=ArtifactSort.CREATED_DESC)
        return [artifact for artifact in artifacts if artifact.created and artifact.created >= start]

    return since_start


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A real server with all deployments."""
    with deployed_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def loopback(deployed: Loopback) -> Iterator[Loopback]:
    """The module's server; each test starts its own workers."""
    yield deployed
    deployed.kill_workers()
