"""One of the processes that train a student together, started by torchrun.

torchrun --nproc-per-node 2 -m alm_pipeline.training_process CONFIG --storage ROOT
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil

from alm_pipeline.config import load_config
from alm_pipeline.config.recipes import RECIPES, recipe
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.runtime.progress import logger
from alm_pipeline.training.parallel.launch import ERRORS, PARENT
from alm_pipeline.training.parallel.processes import joined, this_process
from storage.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """One of the processes, started by torchrun or `accelerate launch`."""
    parser = argparse.ArgumentParser(prog="alm_pipeline.training_process", description=__doc__)
    parser.add_argument("config", help="a YAML or JSON file, or a recipe's name")
    parser.add_argument("--storage", default="alm-data", help="a folder, or any fsspec URL")
    given = parser.parse_args(arguments)
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        _train(given.config, given.storage)
    except Exception as error:
        _write_down(error)
        print(f"error: {error}" if isinstance(error, UserError) else traceback.format_exc(), file=sys.stderr)
        # at once: destructors could wait for processes that wait for this one
        sys.stderr.flush()
        os._exit(1)


def _train(source: str, root: str) -> None:
    config = recipe(source) if source in RECIPES else load_config(Path(source))
    if this_process().count == 1:
        Pipeline(config, root).train()
        return
    with joined() as process:
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        logger.setLevel("INFO" if process.is_first else "WARNING")
        Pipeline(config, root).train()


def _write_down(error: Exception) -> None:
    """For the parent."""
    if folder := os.environ.get(ERRORS):
        is_users = isinstance(error, UserError)
        text = str(error) if is_users else f"training process {this_process().rank}: {traceback.format_exc()}"
        content = {"time": time.time(), "is_users": is_users, "text": text}
        Path(folder, f"error-{this_process().rank}.json").write_text(json.dumps(content), encoding="utf-8")


def _end_with(parent: int) -> None:
    """End this process once the parent is no more: one that is killed can't do it itself."""
    while _is_alive(parent):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
