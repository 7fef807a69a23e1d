"""The first rows of any dataset as plain values that people can read: tokens as text, scores beside their tokens.

What was dropped is among the rows where its id is stored (tokens, alignments, scores), with the reason. Rows of a
corpus that became no example are counted by reason only.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import pyarrow as pa

from alm_pipeline.alignment.shards import reasons_without_chunks
from alm_pipeline.calibration.report.rows import ROW_READERS
from alm_pipeline.inspection.frame import chunk_frame
from alm_pipeline.inspection.shards import SIDES, related
from alm_pipeline.inspection.token_texts import TokenTexts
from alm_pipeline.naming.columns import COLUMN_DESCRIPTIONS
from storage.dataset import Dataset, open_dataset, read_aligned
from storage.errors import UserError
from storage.schemas import SCHEMAS, Kind, TokenKind
from storage.urls import join_url

Row = dict[str, Any]

REASONS = {
    "blank_piece": "a piece of a cut text is white space alone",
    "contaminated": "the document contains a question of an evaluation set (corpus.decontaminate)",
    "exact_duplicate": "an earlier document has the same text (corpus.deduplicate)",
    "near_duplicate": "an earlier document is nearly the same (corpus.deduplicate)",
    "changed_by_nfc": "the tokenizer's own normalization changes the text",
    "empty": "the text is empty",
    "holds_the_space_stand_in": "the text has U+2581, which the tokenizer reads as a space",
    "no_form_fits_both_tokenizers": "no normalization is one that both tokenizers leave as it is",
    "not_text": "the value is not a text, or not a conversation",
    "one_sided_bytes": "one side alone shows some of its bytes (corpus.one_sided: drop)",
    "over_context": "it has more tokens than the model's context",
    "piece_of_a_prompt": "a piece of a cut text holds nothing of the completion",
    "special_token_in_text": "the text spells a special token, which the tokenizer can't read as text",
    "template_changes_content": "the chat template changes what the messages say",
    "template_refuses": "the chat template refuses the conversation",
    "token_without_embedding": "one of its tokens has no row in the model's embedding",
    "tokens_spell_other_bytes": "its tokens spell other bytes than its text",
    "turn_over_context": "a turn has more tokens than the student's context",
    "turn_over_max_bytes": "a turn is longer than corpus.max_bytes",
    "unknown_token": "the vocabulary can't spell the whole text",
}
"""What reasons mean; a reason that is not here says it by its name."""


@dataclass(frozen=True)
class Head:
    """The first rows of a shard, and what there is around them."""

    dataset: Dataset
    shard: int
    shards: int
    rows_in_shard: int
    rows: list[Row]
    """`id`, `dropped` (the reason, or None), and what the kind's reader adds"""
    dropped: Mapping[str, int]
    """in the whole dataset, by reason"""

    def document(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "kind": str(self.dataset.kind),
            "name": self.dataset.name,
            "url": self.dataset.url,
            "shard": self.shard,
            "shards": self.shards,
            "rows_in_shard": self.rows_in_shard,
            "columns": columns(self.dataset.kind),
            "dropped": [
                {"reason": reason, "meaning": meaning_of(reason), "count": count}
                for reason, count in self.dropped.items()
            ],
            "rows": self.rows,
        }


def meaning_of(reason: str) -> str | None:
    """Return what a reason means; of alignments, which name a side in front of it, what each side's means."""
    parts = [part.partition(": ")[2] or part for part in reason.split(", ")]
    return "; ".join(dict.fromkeys(REASONS[part] for part in parts if part in REASONS)) or None


def columns(kind: Kind) -> list[dict[str, str]]:
    """Return the columns of a kind of dataset with their meaning, their values per row and their unit."""
    return [
        {"column": name, "meaning": column.meaning, "values": column.shape, "unit": column.unit}
        for name, column in COLUMN_DESCRIPTIONS[kind].items()
    ]


def head(url: str, count: int, shard: int = 0, *, only_dropped: bool = False) -> Head:
    """Return the first rows of a shard of the dataset at a URL, or the first that were dropped.

    Raises UserError if the shard does not exist, or what the dataset was made from does not.
    """
    dataset = open_dataset(url)
    manifest = dataset.complete_manifest()
    shards = len(manifest.shards)
    if not 0 <= shard < shards:
        raise UserError(f"{url}: has no shard {shard}: it has {shards}, numbered from 0")
    reasons = _reasons(dataset, shard)
    chosen = [row for row, reason in enumerate(reasons) if reason or not only_dropped][:count]
    indices = pa.array(chosen, pa.int64())
    rows = [
        {"id": row.pop("id"), "dropped": reasons[number], **row}
        for number, row in zip(chosen, READERS[dataset.kind](dataset, shard, indices), strict=True)
    ]
    return Head(dataset, shard, shards, manifest.shards[shard].rows, rows, manifest.dropped)


def _reasons(dataset: Dataset, shard: int) -> list[str | None]:
    """Return for each row why it was dropped; None if it was not, or is one of examples."""
    match dataset.kind:
        case Kind.EXAMPLES | Kind.QUESTIONS | Kind.PLACES | Kind.DEMONSTRATIONS | Kind.NEUTRAL_ANSWERS:
            return [None] * dataset.complete_manifest().shards[shard].rows
        case Kind.ACTIVATIONS | Kind.ACTIVATION_SUMS:
            return [None] * dataset.complete_manifest().shards[shard].rows
        case Kind.TOKENS | Kind.CHOICE_SCORES | Kind.NEXT_BYTES:
            return _dropped(dataset, shard)
        case Kind.SIGNATURES:
            return [None] * dataset.complete_manifest().shards[shard].rows
        case Kind.DECISIONS:
            decided: list[str | None] = dataset.read_shard(shard, ["reason"])["reason"].to_pylist()
            return decided
        case Kind.TEACHER_SCORES:
            return _dropped(_tokens_of(dataset, "tokens"), shard)
        case Kind.ALIGNMENTS:
            datasets = related(dataset.url)
            tables = {side: datasets[side].read_shard(shard, ["dropped", "kinds"]) for side in SIDES}
            return reasons_without_chunks(tables | {"alignments": dataset.read_shard(shard, ["kinds"])})
        case _:
            assert_never(dataset.kind)


def _dropped(tokens: Dataset, shard: int) -> list[str | None]:
    reasons: list[str | None] = tokens.read_shard(shard, ["dropped"])["dropped"].to_pylist()
    return reasons


def _tokens_of(dataset: Dataset, role: str) -> Dataset:
    return open_dataset(join_url(dataset.root, Kind.TOKENS, dataset.identity[role]))


_JSON_COLUMNS = ("messages", "template_arguments")


def _examples(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[Row]:
    for row in dataset.read_shard(shard).take(chosen).to_pylist():
        parsed = {name: json.loads(row[name]) for name in _JSON_COLUMNS if row.get(name) is not None}
        yield {**row, **parsed}


def _tokens(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[Row]:
    examples = open_dataset(join_url(dataset.root, Kind.EXAMPLES, dataset.identity["examples"]))
    wanted = {"examples": ["text"], "tokens": SCHEMAS[Kind.TOKENS].names[1:]}
    tables = read_aligned({"examples": examples, "tokens": dataset}, shard, wanted)
    rows, texts = (tables[name].take(chosen).to_pylist() for name in ("tokens", "examples"))
    spelling = TokenTexts(dataset)
    for row, text in zip(rows, texts, strict=True):
        yield {"id": row["id"], "tokens": list(_token_rows(row, text["text"].encode(), spelling))}


def _token_rows(row: Row, text: bytes, texts: Callable[[int], str]) -> Iterator[Row]:
    """Yield an example's tokens, each with the text that it covers, or its own text if it covers no byte."""
    uncovered = dict(zip(row["uncovered_at"], row["uncovered_bytes"], strict=True))
    end = 0
    turns = row["turns"] or [-1] * len(row["token_ids"])
    for place, (id_, length, kind, turn) in enumerate(
        zip(row["token_ids"], row["byte_lengths"], row["kinds"], turns, strict=True)
    ):
        start = end + uncovered.get(place, 0)
        end = start + length
        yield {
            "id": id_,
            "text": text[start:end].decode(errors="replace") if length else texts(id_),
            "bytes": length,
            "kind": TokenKind(kind).name.lower(),
            "role": row["roles"][turn] if turn >= 0 else None,
        }


def _alignments(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[Row]:
    for id_ in dataset.read_shard(shard, ["id"])["id"].take(chosen).to_pylist():
        yield {"id": id_, "chunks": chunk_frame(dataset.url, shard, id_).drop("id").to_dicts()}


def _scores(dataset: Dataset, shard: int, chosen: pa.Int64Array) -> Iterator[Row]:
    tokens = _tokens_of(dataset, "tokens")
    spelling = TokenTexts(tokens)
    scores = dataset.read_shard(shard).take(chosen).to_pylist()
    for row, scored in zip(_tokens(tokens, shard, chosen), scores, strict=True):
        likeliest = _likeliest(scored, len(row["tokens"]), spelling)
        columns = (row["tokens"], scored["logprobs"], scored["boundary_logprobs"], likeliest)
        tokens_with_scores = [
            {
                **token,
                "logprob": _number(logprob),
                "probability": _probability(logprob),
                "boundary_probability": _probability(boundary),
                "likeliest_next": following,
            }
            for token, logprob, boundary, following in zip(*columns, strict=True)
        ]
        yield {"id": row["id"], "tokens": tokens_with_scores}


def _likeliest(scores: Row, tokens: int, texts: Callable[[int], str]) -> list[list[Row]]:
    """Return the likeliest tokens after each token; empty lists if the dataset has none."""
    ids: Sequence[int] = scores.get("top_ids") or []
    if not ids or not tokens:
        return [[] for _ in range(tokens)]
    each = len(ids) // tokens
    pairs = [
        {"text": texts(id_), "probability": _probability(value)}
        for id_, value in zip(ids, scores["top_logprobs"], strict=True)
    ]
    return [pairs[place * each : (place + 1) * each] for place in range(tokens)]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _probability(logprob: float) -> float | None:
    """Return a probability; None for a token without a prediction."""
    return None if math.isnan(logprob) else math.exp(logprob)


def _documents(dataset: Dataset, shard: int, rows: pa.Int64Array) -> Iterator[Row]:
    """Yield what is known of documents; their bands are counted."""
    for row in dataset.read_shard(shard).take(rows).to_pylist():
        row.pop("reason", None)  # shown as what the row was dropped for
        yield row | ({"bands": len(row["bands"])} if "bands" in row else {})


READERS: dict[Kind, Callable[[Dataset, int, pa.Int64Array], Iterator[Row]]] = {
    Kind.SIGNATURES: _documents,
    Kind.DECISIONS: _documents,
    Kind.EXAMPLES: _examples,
    Kind.TOKENS: _tokens,
    Kind.ALIGNMENTS: _alignments,
    Kind.TEACHER_SCORES: _scores,
    **dict.fromkeys((Kind.DEMONSTRATIONS, Kind.NEUTRAL_ANSWERS, Kind.ACTIVATIONS, Kind.ACTIVATION_SUMS), _examples),
    **ROW_READERS,
}
"""For each kind, the function that yields these rows of a shard."""
