"""Multiple-choice questions from a task of lm_eval, with exactly the prompts and choices that lm_eval scores."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from alm_pipeline.calibration.questions import Question, Questions, checked_questions
from alm_pipeline.ensemble.tasks import lm_eval_harness
from storage.errors import UserError, user_error

_MULTIPLE_CHOICE = "multiple_choice"


def task_questions(
    name: str, task_folder: Path | None = None, *, few_shot: int | None = None, limit: int | None = None
) -> Questions:
    """Return the questions of a task; `task_folder` has the user's own YAML tasks.

    A question is one document of the task, and a cluster of its own. Raises UserError if lm_eval is not installed, the
    task does not exist or cannot be loaded, or is not one of multiple choice. A question without one right choice is
    counted as `no_single_answer`, and one whose choices are in its prompt (as winogrande's) as `choices_in_the_prompt`.
    """
    task = _task(name, task_folder)
    if task.OUTPUT_TYPE != _MULTIPLE_CHOICE:
        raise UserError(f"--questions {name}: is a task of {task.OUTPUT_TYPE}: name one of {_MULTIPLE_CHOICE}")
    if few_shot is not None:
        task.set_config(key="num_fewshot", value=few_shot)
    with user_error(f"--questions {name}: lm_eval cannot make its questions", "fix the task, or leave it out"):
        task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        dropped: Counter[str] = Counter()
        documents = groupby(task.instances, key=lambda instance: instance.doc_id)
        found = [_question(name, task, id_, list(instances), dropped) for id_, instances in documents]
    return checked_questions([question for question in found if question], dropped, f"--questions {name}")


_FEW_SHOT_SEED = 1234
"""lm_eval's own default"""


def _question(name: str, task: Any, id_: int, instances: Sequence[Any], dropped: Counter[str]) -> Question | None:
    if task.multiple_input:
        dropped["choices_in_the_prompt"] += 1
        return None
    document = instances[0].doc
    texts = task.doc_to_choice(document)
    answer = task.doc_to_target(document)
    if isinstance(answer, str) and answer in texts:
        answer = texts.index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(texts):
        dropped["no_single_answer"] += 1
        return None
    # after these come the choices without a prompt, where a task has acc_mutual_info
    scored = instances[: len(texts)]
    identifier = f"{name}:{id_}"
    return Question(identifier, scored[0].args[0], tuple(instance.args[1] for instance in scored), answer, identifier)


def _task(name: str, folder: Path | None) -> Any:
    harness = lm_eval_harness()
    manager = harness.task_index([name], folder)
    if name not in manager.all_subtasks:
        raise UserError(
            f"--questions {name}: neither a file nor a task of lm_eval: write the URL of a .jsonl, .parquet or .csv "
            "file, or name a task; --task-folder is for tasks of your own"
        )
    return harness.load_tasks(manager, [name])[name]
