"""A small dataset of each kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from storage.columns import join_rows
from storage.dataset import Dataset, Manifest
from storage.schemas import Kind

NAN = float("nan")


def dataset(root: str, kind: Kind = Kind.TEACHER_SCORES, **identity: Any) -> Dataset:
    return Dataset(root, kind, "sample", {"stage_version": 1, "sizes": (1, 2), **identity})


def columns(kind: Kind, shard: int = 0) -> dict[str, Any]:
    """Return three rows of a kind; the last is empty where possible."""
    ids = pa.array([f"doc:{shard}:{row}" for row in range(3)])
    return {"id": ids, **_COLUMNS[kind]()}


def write(target: Dataset, shards: int = 1) -> Manifest:
    """Write as stages do: every shard without a record, then the manifest."""
    for shard in range(shards):
        if not target.record(shard):
            target.write_shard(shard, columns(target.kind, shard), {"tokens": 3 + shard}, {"too_long": shard})
    return target.finish(shards, {"no_text": 2})


def _examples() -> Mapping[str, Any]:
    return {"split": ["train", "held_out", "train"], "text": ["a", "é😀", ""], "messages": [None, None, "[]"]}


def _tokens() -> Mapping[str, Any]:
    kinds = join_rows([np.array([1, 0]), np.array([0]), np.zeros(0)], pa.uint8())
    turns = join_rows([np.array([-1, 2]), np.array([0]), np.zeros(0)], pa.int16())
    return {
        "token_ids": _ints(),
        "byte_lengths": _ints(),
        "kinds": kinds,
        "turns": turns,
        "roles": [["user", "assistant"], [], []],
        "turn_bytes": _ints(),
        "uncovered_at": _ints(),
        "uncovered_bytes": _ints(),
        "dropped": [None, None, "too_long"],
    }


def _alignments() -> Mapping[str, Any]:
    kinds = join_rows([np.array([0, 2]), np.array([1]), np.zeros(0)], pa.uint8())
    return {
        "teacher_tokens": _ints(),
        "student_tokens": _ints(),
        "byte_lengths": _ints(),
        "kinds": kinds,
        "ends": join_rows([np.array([3, 2]), np.array([0]), np.zeros(0)], pa.uint8()),
        "assistant": [[True, False], [True], []],
    }


def _teacher_scores() -> Mapping[str, Any]:
    rows = [np.array([NAN, -1.5]), np.array([NAN]), np.zeros(0)]
    return {"logprobs": join_rows(rows, pa.float32()), "boundary_logprobs": join_rows(rows[::-1], pa.float32())}


def _signatures() -> Mapping[str, Any]:
    bands = join_rows(
        [np.array([2**64 - 1, 3], np.uint64), np.array([0], np.uint64), np.zeros(0, np.uint64)], pa.uint64()
    )
    return {"text_hash": pa.array([1, 2**64 - 1, 0], pa.uint64()), "bands": bands, "question": [None, "q:1", None]}


def _decisions() -> Mapping[str, Any]:
    return {"reason": [None, "contaminated", "near_duplicate"], "repeats": [None, "q:1", "maths: doc:0:0"]}


def _questions() -> Mapping[str, Any]:
    return {
        "prompt": ["1 + 1 =", "é", ""],
        "choices": [[" 2", " 3"], ["😀", "b", ""], []],
        "answer": [0, 2, 0],
        "cluster": ["sums", "sums", "x"],
    }


def _choice_scores() -> Mapping[str, Any]:
    return {
        "weight": [0.1, 1.0, None],
        "logprobs": join_rows([np.array([-1.5, -0.25]), np.array([-3.0]), np.zeros(0)], pa.float64()),
        "tokens": _ints(),
        "byte_lengths": _ints(),
        "dropped": [None, None, "over_context"],
    }


def _places() -> Mapping[str, Any]:
    return {"before": ["a", "é😀", "x"], "byte": [98, 240, 0], "text": [0, 0, 7]}


def _next_bytes() -> Mapping[str, Any]:
    logprobs = join_rows([np.linspace(-9, -1, 257), np.full(257, -5.5), np.zeros(0)], pa.float64())
    return {"weight": [0.1, 1.0, None], "logprobs": logprobs, "dropped": [None, None, "over_context"]}


def _demonstrations() -> Mapping[str, Any]:
    return {
        "prompt": ["a", "é😀", "b"],
        "positive": ["1", "", "2"],
        "negative": ["3", "4", ""],
        "neutral": [None, "5", None],
    }


def _neutral_answers() -> Mapping[str, Any]:
    return {"answer": ["a", "é😀", ""], "token_ids": _ints()}


def _activations() -> Mapping[str, Any]:
    rows = [np.array([1e6, -1.5]), np.array([0.25]), np.zeros(0)]
    return {"positive": join_rows(rows, pa.float32()), "negative": join_rows(rows[::-1], pa.float32())}


def _activation_sums() -> Mapping[str, Any]:
    rows = [np.array([1e300, -1.5]), np.array([0.1]), np.zeros(0)]
    names = ("neutral", "positive", "negative", "squares", "neutral_positive", "neutral_negative")
    return {"rows": [3, 3, 0], **{name: join_rows(rows, pa.float64()) for name in names}}


def _ints() -> pa.ListArray:
    return join_rows([np.array([5, 2**31 - 1]), np.array([0]), np.zeros(0, np.int64)], pa.int32())


_COLUMNS = {
    Kind.SIGNATURES: _signatures,
    Kind.DECISIONS: _decisions,
    Kind.EXAMPLES: _examples,
    Kind.TOKENS: _tokens,
    Kind.ALIGNMENTS: _alignments,
    Kind.TEACHER_SCORES: _teacher_scores,
    Kind.QUESTIONS: _questions,
    Kind.CHOICE_SCORES: _choice_scores,
    Kind.PLACES: _places,
    Kind.NEXT_BYTES: _next_bytes,
    Kind.DEMONSTRATIONS: _demonstrations,
    Kind.NEUTRAL_ANSWERS: _neutral_answers,
    Kind.ACTIVATIONS: _activations,
    Kind.ACTIVATION_SUMS: _activation_sums,
}
