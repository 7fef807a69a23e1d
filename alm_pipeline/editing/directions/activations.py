"""The stages → ACTIVATIONS and → ACTIVATION SUMS: what the model computes at the last token of each text.

Activations of positive and negative answers are one dataset, those of neutral answers another one: a mean shift needs
no neutral answers. All layers are kept, so that another range of layers reads nothing of the model again. They are kept
as long as they are smaller than their sums, which hold two D × D matrices per place in float64; beyond that, only the
sums of each shard are stored.

Shapes: N demonstrations, P places, D width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from alm_pipeline.editing.directions.capture import Floats, last_token_activations
from alm_pipeline.editing.directions.modeling_edited import apply_function
from alm_pipeline.editing.directions.places import Place, find_places
from alm_pipeline.editing.directions.settings import ActivationConfig
from alm_pipeline.editing.directions.sums import Float64s, PairSums
from alm_pipeline.editing.directions.texts import TextEncoder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.progress import Advance, track
from alm_pipeline.scoring.stage import round_mantissa
from storage.columns import flatten_lists, join_rows, list_rows
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.kinds.edits import SUMS
from storage.schemas import Kind

STAGE_VERSION = 1
_MANTISSA_BITS = 10
"""float16 has 10 too, but the residual streams of some models exceed its range: the exponent stays that of float32"""
ANSWERS, OWN = ("positive", "negative"), ("neutral",)


def keeps_activations(rows: int, width: int) -> bool:
    """Return whether a shard's activations take less than its sums.

    Per place, 3 N D values of 2 bytes (as they are compressed) against 2 D² of 8 bytes.
    """
    return 3 * 2 * rows <= 2 * 8 * width


def activations_dataset(texts: Dataset, model: ModelReference, config: ActivationConfig) -> Dataset:
    """Return the dataset of activations of demonstrations, or of neutral answers, whether or not it is written yet."""
    role = "demonstrations" if texts.kind == Kind.DEMONSTRATIONS else "neutral_answers"
    return Dataset(texts.root, Kind.ACTIVATIONS, _label(texts, model, config), _identity({role: texts}, model, config))


def sums_dataset(
    demonstrations: Dataset, answers: Dataset, model: ModelReference, config: ActivationConfig, nonlinearity: str
) -> Dataset:
    """Return the dataset of the sums of activations, whether or not it is written yet."""
    identity = _identity({"demonstrations": demonstrations, "neutral_answers": answers}, model, config)
    label = _label(answers, model, config)
    return Dataset(demonstrations.root, Kind.ACTIVATION_SUMS, label, {**identity, "nonlinearity": nonlinearity})


def _label(texts: Dataset, model: ModelReference, config: ActivationConfig) -> str:
    label = texts.label if texts.kind == Kind.NEUTRAL_ANSWERS else f"{texts.label}-{model.label}"
    return f"{label}-{config.where}"


def _identity(texts: Mapping[str, Dataset], model: ModelReference, config: ActivationConfig) -> dict[str, Any]:
    return {
        "stage_version": STAGE_VERSION,
        **{role: dataset.name for role, dataset in texts.items()},
        "model": model.identity,
        "tokenizer": model.tokenizer.identity,
        "config": config.model_dump(mode="json", include={"where", "chat", "dtype"}),
    }


@dataclass
class Reader:
    """Reads activations of a model, which is loaded when the first shard needs it."""

    reference: ModelReference
    config: ActivationConfig

    @cached_property
    def model(self) -> PreTrainedModel:
        """The loaded model."""
        return self.reference.load(self.config.dtype, device=self.config.device)

    @cached_property
    def places(self) -> list[Place]:
        return find_places(self.model, self.config.where)

    def read(self, rows: Sequence[Sequence[int]], advance: Advance | None = None) -> Floats:
        """[N, P, D] rounded as they are stored, so that sums do not depend on whether they were."""
        found = last_token_activations(self.model, self.places, rows, self.config.batch_tokens, advance)
        return round_mantissa(found, _MANTISSA_BITS)


def write_activations(target: Dataset, texts: Dataset, model: ModelReference, config: ActivationConfig) -> Manifest:
    """Read the activations of every shard that is not written yet."""
    if manifest := target.manifest():
        return manifest
    sides = ANSWERS if texts.kind == Kind.DEMONSTRATIONS else OWN
    reader, encoder = Reader(model, config), TextEncoder(model, config.chat)
    records = texts.complete_manifest().shards
    total = len(sides) * sum(record.rows for record in records)
    with target.being_written(), track("read activations", total, "texts") as advance:
        for shard, record in enumerate(records):
            if target.record(shard):
                advance(len(sides) * record.rows)
                continue
            ids, rows = _shard_rows(texts, shard, encoder, sides)
            found = {side: reader.read(rows[side], advance) for side in sides}
            model.check_unchanged()
            columns = {side: join_rows(list(each.reshape(len(each), -1)), pa.float32()) for side, each in found.items()}
            target.write_shard(shard, {"id": ids, **columns}, _counts(found))
        return target.finish(len(records))


def _counts(found: Mapping[str, Floats]) -> dict[str, int]:
    return {"texts": sum(map(len, found.values()))}


def _shard_rows(
    texts: Dataset, shard: int, encoder: TextEncoder, sides: Iterable[str]
) -> tuple[pa.ChunkedArray, dict[str, list[list[int]]]]:
    if texts.kind == Kind.NEUTRAL_ANSWERS:
        table = texts.read_shard(shard, ["id", "token_ids"])
        return table["id"], {"neutral": [row.tolist() for row in list_rows(table["token_ids"])]}
    table = texts.read_shard(shard, ["id", "prompt", *sides])
    pairs = {side: zip(table["prompt"].to_pylist(), table[side].to_pylist(), strict=True) for side in sides}
    return table["id"], {side: [encoder.ids(*pair) for pair in each] for side, each in pairs.items()}


def write_sums(
    target: Dataset, demonstrations: Dataset, answers: Dataset, model: ModelReference, config: ActivationConfig
) -> Manifest:
    """Read activations of every shard that is not written yet, and store their sums, a row per place."""
    if manifest := target.manifest():
        return manifest
    reader, encoder = Reader(model, config), TextEncoder(model, config.chat)
    records = demonstrations.complete_manifest().shards
    with target.being_written(), track("add up", 3 * sum(record.rows for record in records), "texts") as advance:
        for shard, record in enumerate(records):
            if target.record(shard):
                advance(3 * record.rows)
                continue
            ids, rows = _shard_rows(demonstrations, shard, encoder, ANSWERS)
            own_ids, own = _shard_rows(answers, shard, encoder, OWN)
            _require_same_ids(ids, own_ids, answers)
            found = [reader.read(each, advance) for each in (own["neutral"], rows["positive"], rows["negative"])]
            mapped = [_mapped(each, target.identity["nonlinearity"]) for each in found]
            sums = [PairSums.of(*(each[:, place] for each in mapped)) for place in range(found[0].shape[1])]
            model.check_unchanged()
            target.write_shard(shard, _sum_columns(reader.places, sums), {"demonstrations": record.rows})
        return target.finish(len(records))


def _mapped(values: Floats, nonlinearity: str) -> npt.NDArray[np.float64]:
    return apply_function(nonlinearity, torch.from_numpy(values.astype(np.float64))).numpy()


def _sum_columns(places: Sequence[Place], sums: Sequence[PairSums]) -> dict[str, Any]:
    columns: dict[str, Any] = {"id": [place.name for place in places], "rows": [each.rows for each in sums]}
    for name in SUMS:
        columns[name] = join_rows([getattr(each, name).reshape(-1) for each in sums], pa.float64())
    return columns


def read_sums(sums: Dataset, chosen: Sequence[int], width: int) -> list[PairSums]:
    """Return the sums over all shards of the chosen places (by their number)."""
    totals: list[PairSums] = []
    for shard in range(len(sums.complete_manifest().shards)):
        table = sums.read_shard(shard).take(pa.array(chosen, pa.int64()))
        columns = {name: list_rows(table[name]) for name in SUMS}
        counts = table["rows"].to_pylist()
        parts = [PairSums(rows, *(_shaped(columns[name][k], width) for name in SUMS)) for k, rows in enumerate(counts)]
        totals = [total + part for total, part in zip(totals, parts, strict=True)] if totals else parts
    return totals


def _shaped(values: npt.NDArray[Any], width: int) -> Float64s:
    shaped: Float64s = values.reshape(width, width) if len(values) == width**2 else values
    return shaped


def read_activations(datasets: Mapping[str, Dataset], places: int) -> Iterator[dict[str, Floats]]:
    """Yield the activations of each shard, [N, P, D] by side. `datasets` are by side.

    Raises UserError if the datasets are not of the same demonstrations.
    """
    first = next(iter(datasets.values()))
    for shard in range(len(first.complete_manifest().shards)):
        tables = {side: dataset.read_shard(shard, ["id", side]) for side, dataset in datasets.items()}
        for side, table in tables.items():
            _require_same_ids(next(iter(tables.values()))["id"], table["id"], datasets[side])
        rows = len(next(iter(tables.values())))
        yield {side: flatten_lists(table[side])[0].reshape(rows, places, -1) for side, table in tables.items()}


def _require_same_ids(ids: pa.ChunkedArray, others: pa.ChunkedArray, dataset: Dataset) -> None:
    if not ids.equals(others):
        raise UserError(f"{dataset.url}: is of other demonstrations than its inputs say: `alm verify` finds out why")
