"""The task runners that process groups of shards, by name: threads of this process, processes, Dask or Ray."""

import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from alm_pipeline.runtime.threads import usable_cores
from storage.errors import UserError

Runner = Literal["threads", "processes", "dask", "ray"]
_CLUSTERS: frozenset[Runner] = frozenset({"dask", "ray"})


def task_runner(runner: Runner, workers: int, address: str | None) -> TaskRunner[Any]:
    """Make a task runner with this number of workers, or for the Dask or Ray cluster at an address.

    Raises UserError if the runner needs an extra that is not installed or a server that is not running, and for an
    address that the runner can't use.
    """
    if address and runner not in _CLUSTERS:
        raise UserError(f"address {address}: the runner {runner} has no cluster: set `runner` to dask or ray")
    if runner != "threads" and not PREFECT_API_URL.value():
        # each of the processes would start its own server
        raise UserError(
            f"runner {runner}: its processes need a Prefect server: start one (`prefect server start`) and set "
            "PREFECT_API_URL, or use the runner threads"
        )
    return RUNNERS[runner](workers, address)


def _threads(workers: int, _: str | None) -> TaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=workers)


def _processes(workers: int, _: str | None) -> TaskRunner[Any]:
    threads = max(1, usable_cores() // workers)
    return ProcessPoolTaskRunner(max_workers=workers, initializer=_initialize_process, initargs=(threads,))


def _dask(workers: int, address: str | None) -> TaskRunner[Any]:
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    cluster = {"address": address} if address else {"cluster_kwargs": local}
    return _import_extra("prefect_dask", "dask").DaskTaskRunner(**cluster)  # type: ignore[no-any-return]


def _ray(workers: int, address: str | None) -> TaskRunner[Any]:
    prefect_ray = _import_extra("prefect_ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings = {} if address else {"num_cpus": workers, "include_dashboard": False}
    return prefect_ray.RayTaskRunner(address=address, init_kwargs=settings)  # type: ignore[no-any-return]


RUNNERS: dict[Runner, Callable[[int, str | None], TaskRunner[Any]]] = {
    "threads": _threads,
    "processes": _processes,
    "dask": _dask,
    "ray": _ray,
}
"""For each runner, the function that makes it from the number of workers and the address of a cluster."""


def _initialize_process(threads: int) -> None:
    """Called first in each process of a pool: limit its threads, so that the processes share the cores."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this process with its parent: if a flow's process is killed, its workers would otherwise wait forever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _import_extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"runner {extra}: not installed: pip install 'alm-pipeline[{extra}]'") from error
