"""The stage PLACES → NEXT BYTES: the distribution of the byte at every place, one dataset for each model or point.

Shard k is made from shard k, with the same places in the same order. Everything after it is arithmetic on these
numbers.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from alm_pipeline.calibration.next_bytes import Floats, NextBytes, as_choices
from alm_pipeline.calibration.report.measures import ScoredChoices
from alm_pipeline.calibration.scored_models import MergePoint, SingleModel
from alm_pipeline.calibration.stage import answered_by_all
from alm_pipeline.config import Dtype
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import track
from alm_pipeline.tokenization.encoder import Dropped
from storage.columns import join_rows
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.schemas import Kind

STAGE_VERSION = 1
_SCORES = ("logprobs", "dropped")
_LEAST = 1e-300
"""a probability that is taken for 0"""


class NextByteScoring:
    """The next bytes at stored places, by one model."""

    def __init__(self, places: Dataset, model: SingleModel | MergePoint, dtype: Dtype) -> None:
        """`dtype` is that of the model in memory."""
        self.places, self.model = places, model
        identity = {
            "stage_version": STAGE_VERSION,
            "places": places.name,
            **model.identity(),
            "tokenizer": model.tokenizer.identity,
            "dtype": dtype,
        }
        notes = {"configuration": {"model": model.label, "places": places.label}}
        label = f"{places.label}-{model.label}"
        self.scores = Dataset(places.root, Kind.NEXT_BYTES, label, identity, provenance=notes)

    def run(self, load: Callable[[], tuple[PreTrainedModel, LoadedTokenizer]]) -> Manifest:
        """Predict at every place of the shards that are not written yet; the model is loaded only if there is one.

        Raises UserError if the tokenizer is not the model's, or its tokens do not cover every byte.
        """
        if manifest := self.scores.manifest():
            return manifest
        shards = len(self.places.complete_manifest().shards)
        with self.scores.being_written():
            if missing := self.scores.missing(range(shards)):
                self._predict(missing, NextBytes(*load()))
            return self.scores.finish(shards)

    def _predict(self, missing: Sequence[int], next_bytes: NextBytes) -> None:
        total = sum(record.rows for record in self.places.known_records(missing))
        with track(f"next bytes {self.model.label}", total, "places") as advance:
            for shard in missing:
                table = self.places.read_shard(shard, ["id", "before"])
                found = []
                for before in table["before"].to_pylist():
                    found.append(next_bytes.after(before))
                    advance(1)
                self.model.check_unchanged()
                self._write(shard, table["id"], found)

    def _write(self, shard: int, ids: pa.ChunkedArray, found: Sequence[Floats | Dropped]) -> None:
        reasons = [str(each) if isinstance(each, Dropped) else None for each in found]
        logprobs = [np.zeros(0) if isinstance(each, Dropped) else np.log(np.maximum(each, _LEAST)) for each in found]
        columns = {
            "id": ids,
            "weight": [self.model.weight] * len(found),
            "logprobs": join_rows(logprobs, pa.float64()),
            "dropped": reasons,
        }
        self.scores.write_shard(shard, columns, {"places": len(found)}, Counter(reason for reason in reasons if reason))


class PredictedPlaces:
    """The places that all of several models read, with what each predicted there, as choices."""

    def __init__(self, places: Dataset, predicted: Sequence[Dataset]) -> None:
        """Reads all shards. Raises UserError if no place was read by all."""
        tables, kept, self.left_out = answered_by_all(places, ["byte", "text"], predicted, _SCORES)
        if not kept:
            raise UserError(f"{places.url}: no place was read by all models (left out: {dict(self.left_out)})")
        asked, *logprobs = (table.take(kept) for table in tables)
        self.clusters = asked["text"].to_numpy()
        answers = asked["byte"].to_numpy().astype(np.int64)
        self.scores: list[ScoredChoices] = [
            as_choices(np.array(table["logprobs"].to_pylist()), answers) for table in logprobs
        ]
