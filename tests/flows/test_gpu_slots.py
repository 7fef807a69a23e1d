"""Scoring and training take one slot of the limit `gpu`, if it exists, for each GPU of this machine."""

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import ObjectNotFound

import alm_pipeline.models.loading
from flows.tasks import gpu_slots

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def limit() -> Iterator[None]:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=3))
        yield
        client.delete_global_concurrency_limit_by_name("gpu")


def active_slots() -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name("gpu").active_slots


def with_gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)
    monkeypatch.setattr(alm_pipeline.models.loading, "all_devices", lambda: devices)


def test_slots_are_taken_and_released(limit: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(2, monkeypatch)
    with gpu_slots():
        assert active_slots() == 2
    assert active_slots() == 0
    with pytest.raises(OSError, match="disk full"), gpu_slots():
        raise OSError("disk full")
    assert active_slots() == 0
    with_gpus(0, monkeypatch)
    with gpu_slots():
        assert active_slots() == 0


def test_without_a_limit_all_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(8, monkeypatch)
    with gpu_slots(), pytest.raises(ObjectNotFound):
        active_slots()
