"""A real Prefect server and real workers on this machine, which tests start, kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

ROOT = Path(__file__).parents[2]
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Loopback:
    """A server with a database in `folder`, or at a URL, and the workers that poll it."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.port = free_port()
        self.url, self.folder = f"http://127.0.0.1:{self.port}/api", folder
        self.database = database or f"sqlite+aiosqlite:///{folder}/prefect.db"
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(self.folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": self.database,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PYTHONPATH": str(ROOT),
        }

    def _start(self, log: str, *command: str) -> "subprocess.Popen[bytes]":
        # in its own session, which can be killed as a whole
        with (self.folder / f"{log}.log").open("a") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._server = self._start(
            "server", *PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)
        )
        wait_for("the server's answer", self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def server_pid(self) -> int:
        assert self._server
        return self._server.pid

    def restart(self) -> None:
        """Kill the server, and start it again on the same port."""
        assert self._server
        kill(self._server)
        self.start()

    def deploy(self) -> None:
        """Make all deployments, on two pools without workers."""
        template = ProcessWorker.get_default_base_job_template()
        with self.client() as client:
            for pool in ("alm", "gpu"):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        self.done("deploy", "--all")

    def worker(self, pool: str) -> "subprocess.Popen[bytes]":
        worker = self._start(f"worker-{pool}", *PREFECT, "worker", "start", "--pool", pool, "--type", "process")
        self._workers.append(worker)
        return worker

    def kill(self, worker: "subprocess.Popen[bytes]") -> None:
        """Kill a worker with -9, together with the runs that it works on."""
        kill(worker)
        self._workers.remove(worker)

    def kill_workers(self) -> None:
        for worker in list(self._workers):
            self.kill(worker)

    def close(self) -> None:
        self.kill_workers()
        if self._server:
            kill(self._server)

    def forget(self, run: Any) -> None:
        """Mark a run whose worker was killed as crashed, as the heartbeat automation does after 90 seconds."""
        with self.client() as client:
            client.set_flow_run_state(run, Crashed(message="killed"))

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*PREFECT, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def done(self, *arguments: str) -> str:
        """Run a command of `prefect` that has to succeed; returns its output."""
        process = self.cli(*arguments)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    def client(self) -> SyncPrefectClient:
        with temporary_settings({PREFECT_API_URL: self.url}):
            return get_client(sync_client=True)

    def run(self, deployment: str, **parameters: Any) -> Any:
        """Create a run of a deployment; returns the run's id."""
        with self.client() as client:
            id_ = client.read_deployment_by_name(deployment).id
            return client.create_flow_run_from_deployment(id_, parameters=parameters).id

    def state(self, run: Any) -> Any:
        with self.client() as client:
            return client.read_flow_run(run).state

    def finished(self, run: Any) -> Any:
        """Wait for the run's end; returns its last state."""
        wait_for("the run's end", lambda: (state := self.state(run)) is not None and state.is_final())
        return self.state(run)

    def runs(self) -> list[Any]:
        with self.client() as client:
            return client.read_flow_runs()

    def logs(self) -> str:
        """The ends of the server's and the workers' logs, for the message of a failed test."""
        return "\n".join(file.read_text(errors="replace")[-4000:] for file in sorted(self.folder.glob("*.log")))


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process with -9, and all processes that it has started."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family)


def wait_for(what: str, happens: Callable[[], bool], seconds: float = 600, between: float = 0.3) -> None:
    """Wait until `happens()` is true. Raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(between)


@contextmanager
def deployed_server(folder: Path, database: str | None = None) -> Iterator[Loopback]:
    """A server with all deployments and no workers."""
    server = Loopback(folder, database)
    try:
        server.start()
        server.deploy()
        yield server
    finally:
        server.close()
