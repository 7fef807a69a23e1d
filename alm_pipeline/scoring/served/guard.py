"""Runs a command, and ends it with all that it has started once the process that asked for it has ended.

python -m alm_pipeline.scoring.served.guard PARENT FOLDER COMMAND…

It leads a session of its own: the command and its children are in its process group.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

_GRACE_S = 3.0


def main(parent: int, folder: str, command: list[str]) -> int:
    """Return the command's exit status; end it at SIGTERM, or when the parent has ended, and remove its folder then."""
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    # this project's packages are for this process alone
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"alm-scores: {command[0]}: can't be started: {error.strerror}: correct score.served.command", flush=True)
        return 127
    while child.poll() is None:
        if os.getppid() != parent:
            shutil.rmtree(folder, ignore_errors=True)
            _stop()
        time.sleep(0.2)
    return child.returncode


def _stop() -> None:
    """Ask all descendants to end, then kill what is left of the group, this process included."""
    family = psutil.Process().children(recursive=True)
    for member in family:
        with suppress(psutil.Error):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=_GRACE_S)[1]:
        with suppress(psutil.Error):
            member.kill()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
