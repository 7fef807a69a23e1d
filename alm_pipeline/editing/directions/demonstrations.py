"""The stage FILES → DEMONSTRATIONS: a prompt, an answer to move to, and one to move away from, per row.

Positive and negative answers of another length or form teach length and form, so both are compared here.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from alm_pipeline.config import FilesSource
from alm_pipeline.corpus.files.errors import RowDropped, columns_set_by
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.values import check_unicode
from alm_pipeline.corpus.sources import OpenSource, open_source
from alm_pipeline.editing.directions.settings import DemonstrationsConfig
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.schemas import Kind

STAGE_VERSION = 1
_SHARD_ROWS, _MOST_SHARDS = 512, 16
_PLACES_DECIDE_NOTHING = {"url"}
LENGTH_RATIO = 1.5
"""mean lengths of positive and negative answers beyond which they are called unequal"""
_FORM_DIFFERENCE = 0.5


@dataclass(frozen=True)
class Demonstration:
    """One demonstration."""

    id: str
    prompt: str
    positive: str
    negative: str
    neutral: str | None


def demonstrations_dataset(config: DemonstrationsConfig, root: str) -> Dataset:
    """Return the dataset of demonstrations, whether or not it is written yet. Files are identified by their content.

    Raises UserError if the files can't be read.
    """
    settings = config.model_dump(mode="json", exclude=_PLACES_DECIDE_NOTHING)
    identity = {"stage_version": STAGE_VERSION, "source": _open(config).identity, "config": settings}
    return Dataset(root, Kind.DEMONSTRATIONS, _label(config.url), identity)


def _open(config: DemonstrationsConfig) -> OpenSource:
    return open_source(FilesSource(urls=(config.url,)))


def _label(url: str) -> str:
    stem = PurePosixPath(url.split("?")[0].rstrip("/")).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "demonstrations"


def write_demonstrations(dataset: Dataset, config: DemonstrationsConfig) -> Manifest:
    """Read the files and write every shard that is not written yet.

    Raises UserError if the files have no demonstrations, lack a column, or change while they are read.
    """
    if manifest := dataset.manifest():
        return manifest
    source = _open(config)
    source.require_identity(dataset.identity["source"])
    dropped: Counter[str] = Counter()
    found = list(_demonstrations(config, source, dropped))
    source.check(final=True)
    if not found:
        reasons = counts_in_words(dropped, "no row was read")
        raise UserError(f"{config.url}: has no demonstrations ({reasons}): check the names of its columns")
    if config.neutral and not any(row.neutral for row in found):
        raise UserError(
            f"{config.url}: neutral: no demonstration has a text in the column {config.neutral!r}: name another one, "
            "or none"
        )
    rows = config.shard_rows or max(_SHARD_ROWS, -(-len(found) // _MOST_SHARDS))
    shards = [found[start : start + rows] for start in range(0, len(found), rows)]
    with dataset.being_written():
        for index, shard in enumerate(shards):
            if not dataset.record(index):
                dataset.write_shard(index, _columns(shard), _counts(shard))
        return dataset.finish(len(shards), dropped)


def _columns(shard: Sequence[Demonstration]) -> dict[str, Any]:
    names = ("id", "prompt", "positive", "negative", "neutral")
    return {name: pa.array([getattr(row, name) for row in shard], pa.string()) for name in names}


def _counts(shard: Sequence[Demonstration]) -> dict[str, int]:
    counts = {"demonstrations": len(shard)}
    for side in ("positive", "negative"):
        answers = [getattr(row, side) for row in shard]
        counts[f"{side}_bytes"] = sum(len(answer.encode()) for answer in answers)
        counts[f"{side}_sentences"] = sum(answer.rstrip().endswith((".", "!", "?", "。")) for answer in answers)
    return counts


def demonstration_rows(source: OpenSource, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield rows with their ids, but for those with bytes that are not UTF-8, which are counted.

    Raises UserError if a column is missing, naming the settings of demonstrations.
    """
    with columns_set_by("Name its columns with demonstrations.prompt, .positive, .negative or .choices."):
        for id_, row in source.rows(columns, dropped):
            try:
                values = [row.get(name) for name in (*columns.required, *columns.optional)]
                check_unicode(json.dumps(values, ensure_ascii=False, default=str))
            except RowDropped as drop:
                drop.count_in(dropped)
            else:
                yield id_, row


def _demonstrations(config: DemonstrationsConfig, source: OpenSource, dropped: Counter[str]) -> Iterator[Demonstration]:
    answers = (config.choices,) if config.choices else (config.positive, config.negative)
    columns = Columns((config.prompt, *answers), () if config.neutral is None else (config.neutral,))
    seen, count = set[str](), 0
    for id_, row in demonstration_rows(source, columns, dropped):
        if config.max_rows is not None and count >= config.max_rows:
            return
        found = _demonstration(config, id_, row)
        if isinstance(found, str):
            dropped[found] += 1
        elif id_ in seen:
            dropped["repeated id"] += 1
        else:
            seen.add(id_)
            count += 1
            yield found


def _demonstration(config: DemonstrationsConfig, id_: str, row: SourceRow) -> Demonstration | str:
    """Return the demonstration of a row, or why there is none."""
    prompt = row.get(config.prompt)
    if not isinstance(prompt, str) or not prompt.strip():
        return "no prompt"
    positives, negatives = row_answers(config, id_, row)
    if not positives or not negatives:
        return "no positive answer" if not positives else "no negative answer"
    positive, negative = _drawn(positives, f"+{id_}"), _drawn(negatives, f"-{id_}")
    if positive == negative:
        return "the same positive and negative answer"
    neutral = row.get(config.neutral) if config.neutral else None
    if neutral is not None and not isinstance(neutral, str):
        return "a neutral answer that is not a text"
    longest = max(len(answer.encode()) for answer in (positive, negative, neutral or ""))
    if len(prompt.encode()) + longest > config.max_bytes:
        return "longer than max_bytes"
    return Demonstration(id_, prompt, positive, negative, neutral)


def row_answers(config: DemonstrationsConfig, id_: str, row: SourceRow) -> tuple[list[str], list[str]]:
    """Return all positive and all negative answers of a row. Raises UserError, naming the row, for other values."""
    if not config.choices:
        return _texts(row.get(config.positive), config.positive, id_), _texts(
            row.get(config.negative), config.negative, id_
        )
    scores = row.get(config.choices)
    if not isinstance(scores, Mapping) or not all(isinstance(score, int | float) for score in scores.values()):
        raise UserError(
            f"row {id_}: {config.choices} is not a mapping of answers to scores ({{answer: 1, other: 0}}): name the "
            "columns of the answers instead of choices"
        )
    best = max(scores.values(), default=0)
    return (
        [answer for answer, score in scores.items() if score == best],
        [answer for answer, score in scores.items() if score < best],
    )


def _texts(value: Any, column: str, id_: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := next((each for each in values if not isinstance(each, str)), None):
        raise UserError(f"row {id_}: {column} is {wrong!r}: an answer is a text, or a list of texts")
    return [each for each in values if each.strip()]


def _drawn(answers: Sequence[str], key: str) -> str:
    """Return one of the answers, chosen by a hash: the same on every machine."""
    return answers[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(answers)]


def unequal_answers(manifest: Manifest) -> list[str]:
    """Return a warning for each way in which positive and negative answers differ by more than what they say."""
    counts, rows = manifest.counts, max(1, manifest.rows)
    lengths = [counts[f"{side}_bytes"] / rows for side in ("positive", "negative")]
    sentences = [counts[f"{side}_sentences"] / rows for side in ("positive", "negative")]
    found = []
    if max(lengths) > LENGTH_RATIO * max(1e-9, min(lengths)):
        found.append(
            f"positive answers have {lengths[0]:.1f} bytes on average and negative ones {lengths[1]:.1f}: the edit "
            "learns length as well; use pairs of one length"
        )
    if abs(sentences[0] - sentences[1]) > _FORM_DIFFERENCE:
        found.append(
            f"{sentences[0]:.0%} of the positive answers end like a sentence and {sentences[1]:.0%} of the negative "
            "ones: the edit learns form as well; use pairs of one form"
        )
    return found
