"""Evaluates models and ensembles with lm-evaluation-harness (`lm_eval`), by its own class for transformers' models.

Importing this module registers the model `alm` in lm_eval.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.ensemble.config import refuse_settings_of_ensembles
from alm_pipeline.ensemble.loading import load, require_models, require_prompts
from alm_pipeline.ensemble.logprobs import row_predictions
from alm_pipeline.ensemble.model import EnsembleModel
from alm_pipeline.models.head_vocabulary import check_rows
from alm_pipeline.models.loading import require_device
from alm_pipeline.runtime.progress import logger
from alm_pipeline.scoring.finite import why_not_finite
from alm_pipeline.scoring.windows import WindowRow
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from storage.errors import UserError, cause, user_error

# lm_eval's requests: the texts (None if they are parts of a longer text), and the ids of context and continuation
Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("alm")
class HarnessModel(HFLM):  # type: ignore[misc]
    """A model or an ensemble, by name or in memory. Other arguments are those of lm_eval's model `hf`."""

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | None = None,
        dtype: str = "float32",
        device: str | None = None,
        trust_remote_code: bool = False,
        template: TemplateChoice | None = None,
        **settings: Any,
    ) -> None:
        """`template` replaces the chat template of a model by name."""
        model = pretrained
        if isinstance(model, str):
            model, tokenizer = load(model, dtype, device, trust_remote_code=trust_remote_code, template=template)
        elif isinstance(model, EnsembleModel):
            tokenizer = model.tokenizer
        if isinstance(model, EnsembleModel) and str(settings.get("batch_size", 1)).startswith("auto"):
            raise UserError("batch_size: auto is not supported for ensembles: set a number of rows")
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **settings)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **settings: Any
    ) -> list[int]:
        """Return a text's ids, in tokens that all members can read."""
        ids: list[int] = super().tok_encode(string, add_special_tokens, **settings)
        if isinstance(self.model, EnsembleModel):
            ids = self.model.readable(ids)
        else:
            check_rows(ids, self.model, self.tokenizer, str(self.model.config.name_or_path))
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return ids and mask [B, T], encoded by `tok_encode`."""
        if not isinstance(self.model, EnsembleModel):
            for string in strings:
                self.tok_encode(string)  # raises for a token that the model can't read
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)  # type: ignore[no-any-return]
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return (log-probability of the continuation, whether greedy generation produces it) for each request."""
        if not isinstance(self.model, EnsembleModel):
            return self._checked(super()._loglikelihood_tokens(requests, disable_tqdm, override_bs))
        rows = [self._row(k, context, continuation) for k, (_, context, continuation) in enumerate(requests)]
        longest = max((len(row.ids) for row in rows), default=0)
        predictions = row_predictions(self.model, rows, longest * (override_bs or self.batch_size))
        answers = self._checked([(float(row.logprobs.sum()), bool(row.likeliest.all())) for row in predictions])
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _checked(self, answers: list[tuple[float, bool]]) -> list[tuple[float, bool]]:
        """Raise UserError if a log-probability is NaN: lm_eval would take it for the likeliest choice."""
        if any(math.isnan(logprob) for logprob, _ in answers):
            dtype = str(self.model.dtype).removeprefix("torch.")
            name = self.model.name_or_path or self.model.config.model_type
            raise UserError(f"{name}: the log-probability of an answer is NaN: {why_not_finite(dtype)}")
        return answers

    def _row(self, example: int, context: list[int], continuation: list[int]) -> WindowRow:
        """Cut on the left where it is too long, as HFLM does; the last token is predicted, and not read."""
        ids = np.array((context + continuation)[-(self.max_length + 1) :], np.int32)
        return WindowRow(example, ids, 0, max(1, len(ids) - len(continuation)))


def evaluate(
    names: Sequence[str],
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    chat: bool = False,
    template: TemplateChoice | None = None,
    think_end: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    samples: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield lm_eval's results for each model or ensemble; with `samples`, also those of each question.

    `task_folder` has the user's own YAML tasks, and `limit` is the number of examples per task. Prompts are put into
    `template`, or into the tokenizer's own with `chat`. Of what is generated, only what follows `think_end` is the
    answer. Raises UserError with lm_eval's message if a task does not exist, or its data cannot be loaded, and before
    the first model is loaded, if another can't be found.
    """
    manager = _manager(tasks, task_folder)
    require_models(names, trust_remote_code=trust_remote_code)
    refuse_settings_of_ensembles(names, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    require_device(device)
    for name in names:
        require_prompts(name, template, chat=chat)
    for name in names:
        model = HarnessModel(
            name,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            template=template,
            batch_size=batch_size,
            think_end_token=think_end,
        )
        with user_error(f"{name}: lm_eval cannot evaluate {', '.join(tasks)}", "fix the task, or leave it out"):
            results = simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=few_shot,
                limit=limit,
                apply_chat_template=chat or template is not None,
                log_samples=samples,
            )
        if wrong := [f"{metric} is {value}" for metric, value in metrics(results).items() if not math.isfinite(value)]:
            logger.warning("%s: %s: compare nothing with that, and look at the task's examples", name, ", ".join(wrong))
        yield results


def check_tasks(tasks: Sequence[str], task_folder: Path | None) -> None:
    """Raise UserError, as `evaluate` does, if a task does not exist, or its data cannot be loaded."""
    _manager(tasks, task_folder)


def _manager(tasks: Sequence[str], task_folder: Path | None) -> TaskManager:
    """Return lm_eval's index of tasks after loading the data of these tasks. Raises UserError if one is named twice."""
    if repeated := [task for task, count in Counter(tasks).items() if count > 1]:
        raise UserError(f"tasks: {repeated[0]} is named twice: name it once")
    manager = task_index(tasks, task_folder)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise UserError(f"tasks {', '.join(unknown)}: lm_eval has no such task; a task folder is for tasks of your own")
    load_tasks(manager, tasks)
    return manager


def task_index(tasks: Sequence[str], folder: Path | None) -> TaskManager:
    """Return lm_eval's index of tasks, which may lack these.

    It takes up to a minute to build with lm_eval's own tasks, which are left out where the user's folder has all of
    these.
    """
    path = str(folder) if folder else None
    if folder and not folder.is_dir():
        raise UserError(f"task folder {folder}: not a folder: name the one that holds your tasks' YAML files")
    with user_error(f"task folder {folder}: lm_eval can't read it", "fix or remove the YAML file that it names"):
        manager = TaskManager(include_path=path, include_defaults=False)
        if not set(tasks) <= set(manager.all_subtasks):
            manager = TaskManager(include_path=path)
    return manager


def load_tasks(manager: TaskManager, tasks: Sequence[str]) -> Mapping[str, Any]:
    """Load the data of tasks, by name. Raises UserError with lm_eval's message if that fails."""
    try:
        loaded: Mapping[str, Any] = manager.load(list(tasks))["tasks"]
    except Exception as error:  # `datasets` and the hub's client raise many kinds of errors
        raise UserError(f"lm_eval cannot load {', '.join(tasks)}: {type(error).__name__}: {cause(error)}") from error
    return loaded


def results_table(results: dict[str, Any]) -> str:
    """Return lm_eval's own table."""
    return str(make_table(results))


def json_results(results: dict[str, Any]) -> str:
    """Return the results as JSON, with null for NaN and infinity, which JSON lacks."""
    return json.dumps(plain_results(results), indent=2, allow_nan=False)


def plain_results(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results by task as plain values, as `json_results` has them."""
    plain: dict[str, Any] = json.loads(json.dumps(_without_nan(results["results"]), default=str, allow_nan=False))
    return plain


def sample_metrics(results: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return each task's metrics by example, in the order of examples; `results` are those with `samples`."""
    found: dict[str, NDArray[np.float64]] = {}
    for task, samples in results["samples"].items():
        for kind in dict.fromkeys(sample["filter"] for sample in samples):
            of_filter = sorted((row for row in samples if row["filter"] == kind), key=lambda row: row["doc_id"])
            for metric in of_filter[0]["metrics"]:
                values = [row.get(metric) for row in of_filter]
                if all(isinstance(value, int | float) for value in values):
                    name = f"{task} {metric}" if kind == "none" else f"{task} {metric},{kind}"
                    found[name] = np.array(values, np.float64)
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return each task's metrics as `task metric`, with the name of lm_eval's filter (`exact_match,strict-match`)."""
    return {
        f"{task} {metric.removesuffix(',none')}": float(value)
        for task, task_results in results["results"].items()
        for metric, value in task_results.items()
        if "," in metric and "stderr" not in metric and isinstance(value, int | float)
    }
