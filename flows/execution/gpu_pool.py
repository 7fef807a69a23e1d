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

_POLL_SECONDS = 2.0


class PoolRunFailed(Exception):
    """A run on the pool failed or crashed. Its own log holds the reason."""


class PoolRunCancelled(Exception):
    """A run on the pool was canceled by someone else."""


class GpuPool:
    """Runs deployments on a work pool, at most `max_runs` at a time. Unfinished runs are canceled on exit."""

    def __init__(self, name: str, max_runs: int) -> None:
        self.name, self.max_runs = name, max_runs
        self._threads, self._exiting = ThreadPoolExecutor(max_runs), Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._exiting.set()
        self._threads.shutdown(cancel_futures=True)

    def check(self, deployment: str) -> None:
        """Raises UserError where the pool has no such deployment."""
        with get_client(sync_client=True) as client:
            try:
                work_pool = client.read_deployment_by_name(deployment).work_pool_name
            except ObjectNotFound as error:
                raise UserError(
                    f"gpu_pool {self.name}: there is no deployment {deployment}: run `prefect deploy --all`"
                ) from error
        if work_pool != self.name:
            raise UserError(
                f"gpu_pool {self.name}: the deployment {deployment} is on the work pool {work_pool}: name that pool, "
                f"or run `prefect deploy --name {deployment.split('/')[-1]} --pool {self.name}`"
            )

    def submit(self, deployment: str, parameters: Mapping[str, Any]) -> "Future[float]":
        """Run a deployment. The future's result is the seconds that it ran.

        The result raises PoolRunFailed or PoolRunCancelled where the run did not complete.
        """
        return self._threads.submit(contextvars.copy_context().run, self._run, deployment, dict(parameters))

    def _run(self, deployment: str, parameters: dict[str, Any]) -> float:
        run = run_deployment(deployment, parameters=parameters, timeout=0)
        assert isinstance(run, FlowRun)  # and not a coroutine, as inside an event loop
        description = f"{deployment}: run {run.name} ({run.id}) on the work pool {self.name}"
        get_run_logger().info("%s", description)
        try:
            run = self._wait_until_final(run.id)
        except BaseException:
            _cancel(run.id)
            raise
        assert run.state
        if run.state.is_cancelled():
            raise PoolRunCancelled(f"{description}: {run.state.message or ''}")
        if not run.state.is_completed():
            raise PoolRunFailed(f"{description}: {run.state.message or ''}")
        return run.total_run_time.total_seconds()

    def _wait_until_final(self, id_: UUID) -> FlowRun:
        with get_client(sync_client=True) as client:
            while True:
                run = _read_flow_run(client, id_)
                if run and run.state and run.state.is_final():
                    return run
                if self._exiting.wait(_POLL_SECONDS):
                    raise PoolRunCancelled("this flow run is ending")


def _read_flow_run(client: SyncPrefectClient, id_: UUID) -> FlowRun | None:
    """Read a flow run; None while the server does not answer, since the run goes on without it."""
    try:
        return client.read_flow_run(id_)
    except httpx.HTTPError as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise
        get_run_logger().warning("the state of run %s can't be read for now: %r", id_, error)
        return None


def _cancel(id_: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(id_, Cancelling(message="the flow run that started this run has ended"))
