"""Checks of the objective against scores that the store has already, and against what is known without any."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.objective.chunking.registry import CHUNKINGS
from alm_pipeline.preflight.context import Context
from alm_pipeline.training.data.examples import COLUMNS, aligned_examples
from storage.columns import flatten_lists
from storage.dataset import Dataset, read_aligned
from storage.schemas import Kind
from storage.urls import join_url, list_folders

_EXAMPLES = 200
_MOST_SHARD_TOKENS = 5_000_000
"""of a shard that is read for a sample"""


def gamma_without_scores(context: Context) -> None:
    """No probability exceeds a γ of 1, so that no chunk ends before its example does."""
    objective, config = context.config.objective, context.config
    if not CHUNKINGS[objective.chunking].merges_by_scores or objective.gamma < 1:
        return
    student = context.student_tokenizer or context.source_tokenizer
    begins = bool(context.teacher_tokenizer.frame[0] and student.frame[0])
    # a chunk that begins with a token without a prediction does not count
    effect = "each example is one chunk" if begins or config.texts.messages else "no chunk counts"
    context.add(
        "objective.gamma",
        f"a chunk ends where a probability exceeds gamma, and none exceeds {objective.gamma:g}, so {effect}",
        "use a smaller one, such as 0.1",
        severity="warning" if begins or config.texts.messages else "error",
    )


def gamma_on_scores(context: Context) -> None:
    """γ ends some chunks of a sample of the stored scores, and some examples have a chunk that counts."""
    objective = context.config.objective
    if not CHUNKINGS[objective.chunking].merges_by_scores or objective.gamma >= 1:
        return
    if not list_folders(join_url(context.store, Kind.TEACHER_SCORES)):
        return
    caches = context.opened("caches", "storage", context.inputs.caches)
    tables = _sample(caches) if caches else None
    if tables is None:
        return
    # other terms need columns or tables of their own, and γ decides only which chunks `alm` has
    rows = aligned_examples(tables, objective.model_copy(update={"terms": {"alm": 1.0}}))
    chunks = sum(map(len, rows["logprobs"].to_pylist()))
    aligned = pc.sum(rows["aligned"]).as_py() or 0
    highest = _highest_boundary_probability(tables)
    if not rows.num_rows:
        context.add(
            "objective.gamma",
            f"no chunk counts in a sample of {tables['scores'].num_rows} scored examples: the teacher's highest "
            f"probability of a boundary token in it is {highest:.3g}",
            "use a smaller one, or longer texts",
            severity="warning",
        )
    elif chunks <= rows.num_rows and aligned > 2 * rows.num_rows:
        context.add(
            "objective.gamma",
            f"it ends no chunk in a sample of {rows.num_rows} scored examples: the teacher's highest probability of a "
            f"boundary token in it is {highest:.3g}",
            "use a smaller one",
            severity="warning",
        )


def _sample(caches: Mapping[str, Dataset]) -> Mapping[str, pa.Table] | None:
    """Return the first examples of the smallest shard; None if not all caches are complete, or the shards are large."""
    datasets = {role: caches[role] for role in COLUMNS}
    manifests = {role: dataset.manifest() for role, dataset in datasets.items()}
    scores = manifests["scores"]
    if scores is None or not all(manifests.values()):
        return None
    sizes = [record.counts["tokens"] for record in scores.shards]
    shard = int(np.argmin([size or np.inf for size in sizes]))
    if not 0 < sizes[shard] <= _MOST_SHARD_TOKENS:
        return None
    tables = read_aligned(datasets, shard, {**COLUMNS, "alignments": (*COLUMNS["alignments"], "assistant")})
    return {role: table.slice(0, _EXAMPLES) for role, table in tables.items()}


def _highest_boundary_probability(tables: Mapping[str, pa.Table]) -> float:
    values, _ = flatten_lists(tables["scores"]["boundary_logprobs"])
    return float(np.exp(values.max(initial=-np.inf)))
