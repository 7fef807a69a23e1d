"""Prefect's server as a process of its own, which ends with the process that started it.

python -m flows.execution.server_process PARENT

It writes its port to stdout, a free one, before it begins to start.
"""

import socket
import sys

from alm_pipeline.runtime.supervisor import end_with_parent


def main(parent: str) -> None:
    """Serve until SIGTERM, or until the parent process ends."""
    import uvicorn

    end_with_parent(int(parent))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        print(free.getsockname()[1], flush=True)
        config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
        uvicorn.Server(config).run(sockets=[free])


if __name__ == "__main__":
    main(sys.argv[1])
