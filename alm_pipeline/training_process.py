"""One of the processes that train a student together. torchrun starts it, or the process that runs the pipeline.

torchrun --nproc-per-node 2 -m alm_pipeline.training_process CONFIG --storage ROOT
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from alm_pipeline.config import AlmConfig, load_config
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.recipes import RECIPES, recipe
from alm_pipeline.runtime.progress import logger
from alm_pipeline.runtime.supervisor import end_with_parent
from alm_pipeline.training.parallel.launch import ERRORS, PARENT
from alm_pipeline.training.parallel.processes import joined_processes, this_process
from storage.errors import UserError
from storage.printed.records import make_output_inert, traceback_text
from storage.printed.secrets import with_secrets

_STATUS_ENDED = 128 + signal.SIGTERM


def main(arguments: list[str] | None = None) -> None:
    """Run one of the processes that torchrun or `accelerate launch` starts."""
    parser = argparse.ArgumentParser(prog="alm_pipeline.training_process", description=__doc__)
    parser.add_argument("config", help="a YAML or JSON file, or the name of a recipe")
    parser.add_argument("--storage", default="alm-data", help="a folder, or any fsspec URL")
    options = parser.parse_args(arguments)
    if parent := os.environ.get(PARENT):
        end_with_parent(int(parent))
    signal.signal(signal.SIGTERM, _unwind)
    try:
        _train(options.config, options.storage)
    except Exception as error:
        _report(error)
        # without destructors: they could wait for processes that wait for this one
        os._exit(1)
    except SystemExit:
        os._exit(_STATUS_ENDED)


def _unwind(*_: object) -> None:
    """Leave by an exception, which releases the lease."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _train(source: str, root: str) -> None:
    make_output_inert()
    config = recipe(source) if source in RECIPES else load_config(Path(source))
    # the process that started this one has sent the secrets in its environment
    config = AlmConfig.model_validate(with_secrets(config.model_dump(mode="json"), os.environ))
    root = with_secrets(root, os.environ)
    if this_process().count == 1:
        Pipeline(config, root).train()
        return
    with joined_processes() as process:
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        logger.setLevel("INFO" if process.is_first else "WARNING")
        Pipeline(config, root).train()


def _report(error: Exception) -> None:
    """Write the error into a file for the process that started the training, or else to stderr."""
    is_user_error = isinstance(error, UserError)
    folder = os.environ.get(ERRORS)
    if not folder:
        print(f"error: {error}" if is_user_error else traceback_text(error), file=sys.stderr, flush=True)
        return
    text = str(error) if is_user_error else f"training process {this_process().rank}: {traceback_text(error)}"
    content = {"time": time.time(), "is_user_error": is_user_error, "text": text}
    Path(folder, f"error-{this_process().rank}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
