"""A sample of the corpus, put through the real stages in a folder of its own: what text becomes, and how fast."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from alm_pipeline.alignment.shards import ONE_SIDED
from alm_pipeline.alignment.table import SEEN_BY_NOT_BOTH, visibility_rows
from alm_pipeline.config import TrainedTokenizer
from alm_pipeline.corpus.examples import Example
from alm_pipeline.corpus.formats.tools import stored_arguments
from alm_pipeline.corpus.stage import write_shard
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.new_tokenizer.special_tokens import with_special_tokens
from alm_pipeline.pipeline import Pipeline, Side
from alm_pipeline.runtime.progress import logger
from storage.dataset import Dataset, Manifest
from storage.schemas import Kind

_TEXT_BYTES = 256 * 2**10
"""the most text that a trial takes: it is tokenized and aligned in about a second"""
_SIDES: tuple[Side, Side] = ("teacher", "student")


@dataclass(frozen=True)
class Trial:
    """What a sample of text became, per byte of it."""

    text_bytes: int
    tokens: dict[Side, float]
    """per byte of text"""
    token_bytes: dict[Side, float]
    """stored, per byte of text"""
    alignment_bytes: float
    """stored, per byte of text"""
    example_bytes: float
    """stored, per byte of text"""
    seconds: dict[str, float]
    """of each stage, for the whole sample"""
    one_sided: tuple[str, ...]
    """what of the sample only one side sees, or neither, in sentences"""
    has_stand_in: bool
    """whether the model's own tokenizer stood in for one that has yet to be trained"""


def try_stages(pipeline: Pipeline, examples: Sequence[Example]) -> Trial | None:
    """Tokenize and align examples; None if there are none. Raises UserError as the stages do."""
    chosen = _evenly(examples, _TEXT_BYTES)
    if not chosen:
        return None
    with tempfile.TemporaryDirectory(prefix="alm-plan-") as folder, _quiet():
        dataset = Dataset(folder, Kind.EXAMPLES, "sample", {"sample": len(chosen)})
        write_shard(dataset, 0, chosen)
        stand_in, tokenizer = student_tokenizer(pipeline)
        return _measure(_on_sample(pipeline, dataset, tokenizer), dataset.finish(1), stand_in)


def stored_examples(examples: Dataset, shards: int) -> list[Example]:
    """Read examples from the shards of a complete dataset, which are evenly spread over it."""
    found: list[Example] = []
    for shard in sorted({0, shards // 3, 2 * shards // 3, shards - 1}):
        rows = examples.read_shard(shard).to_pylist()
        found += [_example(row) for row in rows]
    return found


def _example(row: dict[str, Any]) -> Example:
    messages = json.loads(row["messages"]) if row["messages"] else None
    size = len(row["text"].encode())
    text = None if messages else row["text"]
    return Example(
        row["id"],
        row["split"],
        text,
        messages,
        size,
        False,
        completion_at=row.get("completion_at"),
        arguments=stored_arguments(row.get("template_arguments")),
    )


def _evenly(examples: Sequence[Example], most_bytes: int) -> list[Example]:
    """Return evenly spaced examples of at most that many bytes together, or one."""
    if not examples:
        return []
    mean = max(1.0, sum(example.text_bytes for example in examples) / len(examples))
    count = max(1, min(len(examples), int(most_bytes / mean)))
    chosen = [examples[k * len(examples) // count] for k in range(count)]
    sizes = accumulate(example.text_bytes for example in chosen)
    return [example for example, size in zip(chosen, sizes, strict=True) if size <= 2 * most_bytes] or chosen[:1]


def student_tokenizer(pipeline: Pipeline) -> tuple[bool, LoadedTokenizer]:
    """Return the student's tokenizer, and whether it is only a stand-in. One that can be made in memory is."""
    made, source = pipeline.made_tokenizer, pipeline.source_tokenizer
    if made is None or made.manifest():
        return False, pipeline.student_tokenizer
    if isinstance(pipeline.config.student.tokenizer, TrainedTokenizer):
        return True, source
    if pipeline.named_tokenizer is None:
        return False, LoadedTokenizer(made.label, byte_level_tokenizer(source.fast))
    return False, LoadedTokenizer(made.label, with_special_tokens(source.fast, pipeline.named_tokenizer.fast))


def _on_sample(pipeline: Pipeline, examples: Dataset, tokenizer: LoadedTokenizer) -> Pipeline:
    """Return a pipeline of the same models and tokenizers on other examples."""
    config = pipeline.config
    if config.texts.one_sided == "refuse":  # a plan reports what there is; the check and the run refuse it
        config = config.model_copy(update={"corpus": config.texts.model_copy(update={"one_sided": "keep"})})
    sample = Pipeline(config, examples.root)
    sample.teacher, sample.source = pipeline.teacher, pipeline.source
    vars(sample).update(examples=examples, student_tokenizer=tokenizer, made_tokenizer=None)
    return sample


def _measure(sample: Pipeline, examples: Manifest, stand_in: bool) -> Trial:
    size, seconds = max(1, examples.counts["text_bytes"]), {}
    manifests: dict[str, Manifest] = {}
    for side in _SIDES:
        start = time.monotonic()
        manifests[side] = _complete(sample.tokenize(side))
        seconds[f"tokenize {side}"] = time.monotonic() - start
    start = time.monotonic()
    alignments = _complete(sample.align())
    seconds["align"] = time.monotonic() - start
    return Trial(
        size,
        {side: manifests[side].counts["tokens"] / size for side in _SIDES},
        {side: manifests[side].bytes / size for side in _SIDES},
        alignments.bytes / size,
        examples.bytes / size,
        seconds,
        tuple(_one_sided(alignments, examples)),
        stand_in,
    )


def _one_sided(alignments: Manifest, examples: Manifest) -> Iterator[str]:
    for what, shares in visibility_rows(alignments.counts, examples.counts["text_bytes"], SEEN_BY_NOT_BOTH):
        yield f"in a sample, {what} {shares}"
    if count := alignments.dropped.get(ONE_SIDED):
        yield f"in a sample, {count:,} of {examples.rows:,} examples are left out (corpus.one_sided: drop)"


def _complete(manifest: Manifest | None) -> Manifest:
    assert manifest
    return manifest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the stages' lines out of the log: they are about a sample."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
