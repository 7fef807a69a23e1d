"""A process that scores shards on one GPU: `python -m alm_pipeline.scoring.process PARENT`, with a job on stdin.

It writes a line of JSON for each batch (`tokens`), and one with the error if it fails. See `processes`.
"""

import json
import os
import sys
from typing import Any

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.progress import observed
from alm_pipeline.runtime.supervisor import end_with_parent
from alm_pipeline.scoring.stage import score
from storage.dataset import Dataset
from storage.errors import UserError
from storage.schemas import Kind


def main() -> int:
    end_with_parent(int(sys.argv[1]))
    job, output = json.load(sys.stdin), _own_output()
    done = 0.0

    def report(description: str, total_done: float, total: float | None, unit: str) -> None:
        nonlocal done
        if unit == "tokens" and total_done > done:
            print(json.dumps({"tokens": total_done - done}), file=output, flush=True)
            done = total_done

    teacher = ModelReference(**job["teacher"])
    vars(teacher)["revision"] = job["revision"]  # a branch may have moved
    try:
        with observed(report):
            tokens, scores = (_dataset(job[name]) for name in ("tokens", "scores"))
            score(tokens, scores, teacher, ScoreConfig.model_validate(job["config"]), job["shards"])
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=output, flush=True)
        return 1
    return 0


def _own_output() -> Any:
    """Return the way to the parent; what libraries print goes to stderr."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def _dataset(described: dict[str, Any]) -> Dataset:
    rewritten = described["rewritten"]
    changed = {"kind": Kind(described["kind"]), "rewritten": None if rewritten is None else frozenset(rewritten)}
    return Dataset(**{**described, **changed})


if __name__ == "__main__":
    sys.exit(main())
