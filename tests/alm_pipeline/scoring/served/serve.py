"""The small server as a command with the arguments of `vllm serve`; it ends itself after some requests, once.

python serve.py FOLDER --host HOST --port PORT --die-after N …
"""

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins" / "alm-scores")]

from alm_pipeline.models.reference import ModelReference  # noqa: E402
from tests.alm_pipeline.scoring.served.small_server import SmallServer, running  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--max-model-len", type=int)
    options, _ = parser.parse_known_args()
    # a server of hidden states gets no file
    folder = Path(os.environ.get("ALM_SCORES_FILE") or tempfile.mkdtemp() + "/file").parent
    server = SmallServer(ModelReference(options.folder), folder)
    server.longest = options.max_model_len
    died = folder / "died"
    if options.die_after is not None and not died.exists():

        def die(_: Any, answer: dict[str, Any]) -> dict[str, Any]:
            if len(server.asked) > options.die_after:
                died.touch()
                os._exit(1)
            return answer

        server.always = die
    with running(server, options.port):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
