"""What the term `bpm` costs: `python -m benchmarks.next_tokens [--top-k 16] [--steps 6]`.

The recipe `transfer` with the teacher's likeliest tokens. The targets are made from the cache as in the stream: their
time, their memory, and how much of the teacher's probability they place. Then training steps with and without the term,
the same batches in turn.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np
import pyarrow as pa
import torch

from alm_pipeline.config import Debias, ObjectiveConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.recipes import recipe
from alm_pipeline.training.data.arrays import read_targets
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.model.terms import micro_batch_losses
from storage.columns import flatten_lists

FORMS: tuple[Debias, ...] = ("end", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--root", help="keeps the caches for the next run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = pipeline_of(options.root or scratch, options.top_k)
        pipeline.cache()
        begin = time.perf_counter()
        assert pipeline.distillation.prefixes
        print(f"prefixes of both vocabularies: {time.perf_counter() - begin:.2f} s")
        for debias in FORMS:
            measure_targets(pipeline, debias)
        if options.steps:
            measure_steps(pipeline, options.steps)


def pipeline_of(root: str, top_k: int) -> Pipeline:
    config = recipe("transfer")
    score = config.score.model_copy(update={"top_k": top_k})
    objective = config.objective.model_copy(update={"terms": {"alm": 1.0, "bpm": 1.0}})
    return Pipeline(config.model_copy(update={"score": score, "objective": objective}), root)


def measure_targets(pipeline: Pipeline, debias: Debias) -> None:
    objective = pipeline.config.objective.model_copy(update={"debias": debias})
    without = objective.model_copy(update={"terms": {"alm": 1.0}})
    shards = range(len(pipeline.caches["alignments"].complete_manifest().shards))
    seconds = dict.fromkeys(("with", "without"), 0.0)
    tables: list[pa.Table] = []
    for _ in range(3):  # the first one compiles
        tables = []
        seconds = dict.fromkeys(seconds, 0.0)
        for shard in shards:
            with timed(seconds, "with"):
                prefixes = pipeline.distillation.prefixes
                tables.append(read_examples(pipeline.caches, shard, "train", objective, prefixes=prefixes))
            with timed(seconds, "without"):
                read_examples(pipeline.caches, shard, "train", without)
    rows = pa.concat_tables(tables)
    targets, tokens = read_targets(rows), len(flatten_lists(rows["token_ids"])[0])
    size = sum(rows[name].nbytes for name in rows.column_names if name.startswith("target_"))
    placed = np.add.reduceat(targets.probabilities, np.cumsum(targets.sizes, dtype=np.int64) - targets.sizes)
    print(
        f"debias {debias}: targets at {len(targets.tokens) / tokens:.1%} of {tokens:,} student tokens, "
        f"{targets.sizes.mean():.1f} tokens each, which have {placed.mean():.3f} of the probability; "
        f"{size / tokens:.1f} bytes per student token; reading takes, in processor time, "
        f"{seconds['with'] / tokens * 1e6:.2f} s per million "
        f"student tokens, without them {seconds['without'] / tokens * 1e6:.2f} s"
    )


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.process_time()
    yield
    seconds[name] += time.process_time() - begin


def measure_steps(pipeline: Pipeline, steps: int) -> None:
    student = pipeline.distillation.initial_student().model
    vocabulary = HeadVocabulary.of(student, pipeline.student_tokenizer)
    objectives = {name: objective(pipeline, terms) for name, terms in (("alm", ("alm",)), ("bpm", ("alm", "bpm")))}
    prefixes = pipeline.distillation.prefixes
    stream = BatchStream(pipeline.caches, objectives["bpm"], pipeline.config.train, prefixes=prefixes)
    taken: dict[str, list[float]] = {name: [] for name in objectives}
    for batch in itertools.islice(stream, steps + 1):
        for name, chosen in objectives.items():
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16), matmul_precision("medium"):
                losses = micro_batch_losses(student, batch, vocabulary, chosen, LossCounts.of(batch))
            torch.stack([losses.terms[term] for term in chosen.terms]).sum().backward()
            student.zero_grad()
            taken[name].append(time.perf_counter() - begin)
    ratios = [bpm / alm for alm, bpm in zip(taken["alm"][1:], taken["bpm"][1:], strict=True)]
    print(
        f"a step of {stream.train.batch_tokens} tokens, forward and backward: {median(taken['alm'][1:]):.2f} s without "
        f"and {median(taken['bpm'][1:]):.2f} s with bpm: median ratio {median(ratios):.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f})"
    )


def objective(pipeline: Pipeline, terms: tuple[str, ...]) -> ObjectiveConfig:
    return pipeline.config.objective.model_copy(update={"terms": dict.fromkeys(terms, 1.0)})


if __name__ == "__main__":
    main()
