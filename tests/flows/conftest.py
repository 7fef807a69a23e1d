"""One Prefect test server for all flow tests, without heartbeat threads; real servers for modules that ask for one."""

from collections.abc import Iterator

import pytest
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
