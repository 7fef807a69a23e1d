"""A PostgreSQL server for one test on this machine, from the binaries of a distribution's package."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.flows.loopback import free_port, wait_for

# Debian and Ubuntu keep them out of PATH
_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parent.name, reverse=True)
_PATH = os.pathsep.join([*map(str, _FOLDERS), os.environ.get("PATH", "")])
# PostgreSQL refuses to run as root
_USER = "nobody" if os.geteuid() == 0 else None


def missing() -> str | None:
    """Say how to install PostgreSQL; None where it is installed."""
    if all(shutil.which(name, path=_PATH) for name in ("initdb", "postgres", "pg_isready")):
        return None
    return "no PostgreSQL on this machine: apt-get install postgresql"


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server with an empty database; yields its URL in the form that Prefect expects."""
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:  # pytest's own folders are readable only by root
        folder = Path(name)
        if _USER:
            shutil.chown(folder, _USER)
        initdb = _command("initdb", "-D", "data", "--username=prefect", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with (folder / "log").open("w") as log:
            done = subprocess.run(initdb, cwd=folder, user=_USER, stdout=log, stderr=log, check=False)
            assert done.returncode == 0, (folder / "log").read_text()
            command = _command("postgres", "-D", "data", "-F", "-h", "127.0.0.1", "-p", port, "-k", "")
            server = subprocess.Popen(command, cwd=folder, user=_USER, stdout=log, stderr=log)
        try:
            wait_for("PostgreSQL's answer", lambda: _answers(port) or server.poll() is not None)
            assert server.poll() is None, (folder / "log").read_text()
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing is kept
            server.wait()


def _answers(port: str) -> bool:
    ready = _command("pg_isready", "-h", "127.0.0.1", "-p", port, "-U", "prefect", "-d", "postgres")
    return subprocess.run(ready, capture_output=True, check=False).returncode == 0


def _command(name: str, *arguments: str) -> list[str]:
    program = shutil.which(name, path=_PATH)
    assert program
    return [program, *arguments]
