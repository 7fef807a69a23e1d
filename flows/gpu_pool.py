"""Stages that run elsewhere: as runs of deployments on a work pool of machines with GPUs."""

import contextvars
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, Self
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from storage.errors import UserError

_SECONDS_A_LOOK = 2.0


class PoolRunFailed(Exception):
    """A run on the pool failed or crashed; its own log says why."""


class PoolRunCancelled(Exception):
    """A run on the pool was cancelled by someone else."""


class GpuPool:
    """Runs of deployments on a work pool, so many at a time; those that are not done at the end are cancelled."""

    def __init__(self, name: str, runs_at_once: int) -> None:
        self.name, self.runs_at_once = name, runs_at_once
        self._threads, self._leaving = ThreadPoolExecutor(runs_at_once), Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._leaving.set()
        self._threads.shutdown(cancel_futures=True)

    def check(self, deployment: str) -> None:
        """Raises UserError where there is no such deployment on the pool."""
        with get_client(sync_client=True) as client:
            try:
                found = client.read_deployment_by_name(deployment)
            except ObjectNotFound as error:
                raise UserError(
                    f"gpu_pool {self.name}: there is no deployment {deployment}: `prefect deploy`"
                ) from error
        if found.work_pool_name != self.name:
            raise UserError(
                f"gpu_pool {self.name}: the deployment {deployment} is on the work pool {found.work_pool_name}: name "
                f"that one, or `prefect deploy --name {deployment.split('/')[-1]} --pool {self.name}`"
            )

    def submit(self, deployment: str, parameters: Mapping[str, Any]) -> "Future[float]":
        """Run a deployment; the result is the seconds that it ran.

        The result raises PoolRunFailed or PoolRunCancelled where that is what became of it.
        """
        return self._threads.submit(contextvars.copy_context().run, self._run, deployment, dict(parameters))

    def _run(self, deployment: str, parameters: dict[str, Any]) -> float:
        run = run_deployment(deployment, parameters=parameters, timeout=0)
        assert isinstance(run, FlowRun)  # and no coroutine, as from within an event loop
        get_run_logger().info("%s: run %s (%s) on the work pool %s", deployment, run.name, run.id, self.name)
        try:
            run = self._finished(run.id)
        except BaseException:
            _cancel(run.id)
            raise
        assert run.state
        said = f"{deployment}: run {run.name} ({run.id}) on the work pool {self.name}: {run.state.message or ''}"
        if run.state.is_cancelled():
            raise PoolRunCancelled(said)
        if not run.state.is_completed():
            raise PoolRunFailed(said)
        return run.total_run_time.total_seconds()

    def _finished(self, id_: UUID) -> FlowRun:
        with get_client(sync_client=True) as client:
            while True:
                run = _looked_up(client, id_)
                if run and run.state and run.state.is_final():
                    return run
                if self._leaving.wait(_SECONDS_A_LOOK):
                    raise PoolRunCancelled("this flow run ends")


def _looked_up(client: SyncPrefectClient, id_: UUID) -> FlowRun | None:
    """None while the server does not answer: the run goes on without it."""
    try:
        return client.read_flow_run(id_)
    except httpx.HTTPError as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise
        get_run_logger().warning("%s: can't be asked about for now: %r", id_, error)
        return None


def _cancel(id_: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(id_, Cancelling(message="the flow run that asked for it has ended"))
