"""Where groups of shards are worked on: threads of this process, processes, Dask or Ray, by name."""

import importlib
import multiprocessing
import os
import threading
from types import ModuleType
from typing import Any, Literal

from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from storage.errors import UserError

Runner = Literal["threads", "processes", "dask", "ray"]


def task_runner(runner: Runner, workers: int, address: str | None) -> TaskRunner[Any]:
    """A task runner of so many workers, or of the Dask or Ray cluster at an address.

    Raises UserError where the runner needs an extra that is not installed, a server that is not there, or is given an
    address that it has no use for.
    """
    if address and runner not in ("dask", "ray"):
        raise UserError(f"address {address}: is a cluster's, and the runner is {runner}: set runner to dask or ray")
    if runner != "threads" and not PREFECT_API_URL.value():
        # each of the processes would start a server of its own
        raise UserError(
            f"runner {runner}: its processes need a Prefect server to talk to: start one (`prefect server start`) and "
            "set PREFECT_API_URL, or use the runner threads"
        )
    match runner:
        case "threads":
            return ThreadPoolTaskRunner(max_workers=workers)
        case "processes":
            threads = max(1, len(os.sched_getaffinity(0)) // workers)
            return ProcessPoolTaskRunner(max_workers=workers, initializer=_share_cores, initargs=(threads,))
        case "dask":
            local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
            cluster = {"address": address} if address else {"cluster_kwargs": local}
            return _extra("prefect_dask", "dask").DaskTaskRunner(**cluster)  # type: ignore[no-any-return]
        case "ray":
            prefect_ray = _extra("prefect_ray", "ray")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            settings = {} if address else {"num_cpus": workers, "include_dashboard": False}
            return prefect_ray.RayTaskRunner(address=address, init_kwargs=settings)  # type: ignore[no-any-return]


def _share_cores(threads: int) -> None:
    """Run first in each process of a pool: as many threads as leave the others theirs."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A flow's process that is killed leaves its workers waiting for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"runner {extra}: is not installed: pip install 'alm-pipeline[{extra}]'") from error
