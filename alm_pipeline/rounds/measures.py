"""What a student is worth on what it writes itself: on held-out prompts, by prompt.

All measures are ratios of sums over prompts, as `methods.units` keeps them:

- *KL per word*: the divergence of `evaluation.words` from the teacher, on the words that the student wrote. The end of
  a text is a word of its own.
- *reverse KL per word*: the mean of log q - log p over these words, where q is the student's and p the teacher's
  likelihood of the word. At temperature 1, without `top_k` and `top_p`, its expectation is KL(student‖teacher), but
  for the last piece of a text that was cut.
- *bits per byte*: of what was written, by the student's and by the teacher's own tokens.
- *usable*: the share of prompts on which the student wrote something that is not left out. All other measures are of
  these texts alone, so a student that writes more that is left out looks better than it is.
- *tokens per text* and *bytes per text* that were written, the share that is *finished* (not cut at the most tokens),
  and *repetition*: the share of runs of four words that occurred before in the same text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.config import RoundsConfig, ScoreConfig
from alm_pipeline.conversations.sections import first_section, joined_text
from alm_pipeline.corpus.cutting import split_text
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.methods.tasks import ComparedTasks, measure_tasks
from alm_pipeline.methods.units import BITS, KL, UnitStore, unit_table
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer
from storage.dataset import Dataset, read_aligned
from storage.kinds.rollouts import FINISHED
from storage.schemas import TokenKind

REVERSE_KL, TEACHER_BITS = "reverse KL per word", "teacher's bits per byte"
TOKENS, BYTES, FINISHED_SHARE, REPETITION = "tokens per text", "bytes per text", "finished", "repetition"
USABLE = "usable"
WRITTEN = "written"
"""the domain of measures of what the student wrote, with the source of the prompts in a mixture; others are tasks"""
_RUN = 4
"""words"""
_LONG_WORD = 16
_HEADER = frozenset({TokenKind.START_OF_TURN, TokenKind.ROLE, TokenKind.END_OF_HEADER})

Units = Mapping[str, tuple[float, float]]
"""A measure's sum and size by held-out prompt."""


def measure_student(
    run: Pipeline, model: ModelReference, rounds: RoundsConfig, asked: Sequence[Sequence[str]], url: str
) -> pa.Table:
    """Return what a student is worth on the text that it wrote, the examples of `run`, and on tasks: rows of `UNITS`.

    `asked` are the ids of the held-out prompts of each source. What was measured before is kept under `url`.
    """
    store = UnitStore(url)
    tables = []
    for part, prompts in zip(run.parts, asked, strict=True):
        domain = f"{WRITTEN}, {part.name.rpartition('-round-')[0]}" if run.config.is_mixture else WRITTEN
        caches = {role: dataset.name for role, dataset in part.caches.items()}
        identity = {"kind": "rounds", "domain": domain, "model": model.identity, "caches": caches}
        tables.append(store.of(identity, partial(_measure_written, part, model, prompts, domain)))
    if rounds.tasks:
        tables.append(measure_tasks(model, tasks_of(rounds), store, rounds.sampling.dtype))
    return pa.concat_tables(tables)


def tasks_of(rounds: RoundsConfig) -> ComparedTasks:
    """Return the tasks that students are measured on."""
    folder = Path(rounds.task_folder) if rounds.task_folder else None
    return ComparedTasks(rounds.tasks, folder, limit=rounds.task_limit)


def _measure_written(run: Pipeline, model: ModelReference, asked: Sequence[str], domain: str) -> pa.Table:
    held_out = HeldOut.read(run.caches)
    settings = ScoreConfig(dtype="float32", batch_tokens=run.config.score.batch_tokens)
    sums = held_out.student_sums(Scorer.load(model, settings), "measure what was written")
    model.check_unchanged()
    teacher = held_out.teacher_sums
    columns = {BITS: (sums.bits, sums.bytes), TEACHER_BITS: (teacher.bits, teacher.bytes)}
    if sums.kl is not None and sums.words is not None and sums.log_ratios is not None:
        columns |= {KL: (sums.kl, sums.words), REVERSE_KL: (sums.log_ratios, sums.words)}
    names = held_out.document_names
    units = {measure: _by_name(names, *pair) for measure, pair in columns.items()}
    units |= text_measures(run.examples, run.tokens("student"))
    written = units[BYTES].keys()
    units[USABLE] = {prompt: (float(prompt in written), 1.0) for prompt in asked}
    return pa.concat_tables(unit_table(domain, measure, of_measure) for measure, of_measure in units.items())


def _by_name(names: Sequence[str], sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> Units:
    return dict(zip(names, zip(sums.tolist(), sizes.tolist(), strict=True), strict=True))


def text_measures(rollouts: Dataset, tokens: Dataset) -> dict[str, Units]:
    """Return the measures of the held-out texts that need no model, by prompt; `tokens` are the writer's."""
    units: dict[str, dict[str, tuple[float, float]]] = {TOKENS: {}, BYTES: {}, FINISHED_SHARE: {}, REPETITION: {}}
    for row, encoded in _held_out_rows(rollouts, tokens):
        text, id_ = written_text(row), row["id"]
        units[TOKENS][id_] = float(_written_tokens(row, encoded)), 1.0
        units[BYTES][id_] = float(len(text.encode())), 1.0
        units[FINISHED_SHARE][id_] = float(row["finish_reason"] == FINISHED), 1.0
        repeated, runs = repetition(text)
        units[REPETITION][id_] = float(repeated), float(runs)
    return dict(units)


def _held_out_rows(rollouts: Dataset, tokens: Dataset) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    datasets = {"rollouts": rollouts, "tokens": tokens}
    columns = {
        "rollouts": ["split", "text", "messages", "completion_at", "finish_reason"],
        "tokens": ["kinds", "turns"],
    }
    for shard in range(len(rollouts.complete_manifest().shards)):
        tables = read_aligned(datasets, shard, columns)
        rows = zip(*(tables[name].to_pylist() for name in datasets), strict=True)
        yield from ((row, encoded) for row, encoded in rows if row["split"] == "held_out")


def _written_tokens(row: Mapping[str, Any], encoded: Mapping[str, Any]) -> int:
    """Return how many tokens were written: those of the last turn, without its header, which was in the prompt."""
    first = 1 if row["messages"] is None else first_section(json.loads(row["messages"]), row["completion_at"])
    return sum(
        turn >= first and kind not in _HEADER for turn, kind in zip(encoded["turns"], encoded["kinds"], strict=True)
    )


def written_text(row: Mapping[str, Any]) -> str:
    """Return what was written in a row of rollouts, without the prompt."""
    if row["messages"] is None:
        return split_text(row["text"], row["completion_at"])[1]
    return joined_text(json.loads(row["messages"])[row["completion_at"] :])


def repetition(text: str) -> tuple[int, int]:
    """Return how many runs of four words occurred before in a text, and how many there are.

    Words are what white space separates; a text with less than one space in 16 characters is taken by characters.
    """
    words: Sequence[str] = text.split()
    if len(words) * _LONG_WORD < len(text):
        words = text
    runs = [tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)]
    return len(runs) - len(set(runs)), len(runs)
