"""The rows of stored questions, places and scores, for people to read."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from storage.dataset import Dataset, open_dataset, read_aligned
from storage.schemas import SCHEMAS, Kind
from storage.urls import join_url


def question_rows(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[dict[str, Any]]:
    """Yield these rows of a shard of questions, for people to read."""
    for row in dataset.read_shard(shard).take(chosen).to_pylist():
        yield {**row, "choices": [{"choice": text} for text in row["choices"]]}


def choice_rows(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[dict[str, Any]]:
    """Yield these rows of a shard of choice scores, each choice with its text, for people to read."""
    questions = open_dataset(join_url(dataset.root, Kind.QUESTIONS, dataset.identity["questions"]))
    wanted = {"questions": ["prompt", "choices", "answer"], "scores": SCHEMAS[Kind.CHOICE_SCORES].names[1:]}
    tables = read_aligned({"questions": questions, "scores": dataset}, shard, wanted)
    rows = zip(*(tables[name].take(chosen).to_pylist() for name in wanted), strict=True)
    for question, scored in rows:
        columns = zip(question["choices"], scored["logprobs"], scored["tokens"], scored["byte_lengths"], strict=False)
        names = ("choice", "logprob", "tokens", "bytes")
        choices = [dict(zip(names, values, strict=True)) for values in columns]
        yield {**question, "weight": scored["weight"], "choices": choices}


def place_rows(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[dict[str, Any]]:
    """Yield these rows of a shard of places, for people to read."""
    for row in dataset.read_shard(shard).take(chosen).to_pylist():
        yield {**row, "byte": _shown(row["byte"])}


def next_byte_rows(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[dict[str, Any]]:
    """Yield these rows of a shard of next bytes, each with its text and the likeliest bytes, for people to read."""
    places = open_dataset(join_url(dataset.root, Kind.PLACES, dataset.identity["places"]))
    tables = read_aligned(
        {"places": places, "scores": dataset}, shard, {"places": ["before", "byte"], "scores": _SCORED}
    )
    rows = zip(*(tables[name].take(chosen).to_pylist() for name in ("places", "scores")), strict=True)
    for place, scored in rows:
        logprobs = scored["logprobs"]
        likeliest = sorted(range(len(logprobs)), key=logprobs.__getitem__, reverse=True)[:_LIKELIEST]
        bytes_ = dict.fromkeys([place["byte"], *likeliest]) if logprobs else ()
        yield {
            **place,
            "byte": _shown(place["byte"]),
            "weight": scored["weight"],
            "bytes": [{"byte": _shown(byte), "logprob": logprobs[byte]} for byte in bytes_],
        }


def _shown(outcome: int) -> str:
    return repr(bytes([outcome]))[2:-1] if outcome < _BYTES else "end of text"


_SCORED = ["weight", "logprobs"]
_LIKELIEST = 5
_BYTES = 256

ROW_READERS: dict[Kind, Callable[[Dataset, int, pa.Int64Array], Iterator[dict[str, Any]]]] = {
    Kind.QUESTIONS: question_rows,
    Kind.CHOICE_SCORES: choice_rows,
    Kind.PLACES: place_rows,
    Kind.NEXT_BYTES: next_byte_rows,
}
"""For each kind, the function that yields these rows of a shard."""
