"""Bits per byte with real tokenizers, which training never draws: of FVT, of FOCUS, and of the network so far.

Shapes: B rows, T tokens of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from alm_pipeline.config import Method
from alm_pipeline.evaluation.bits_per_byte import TextTokens, bits_per_byte
from alm_pipeline.hypernetwork.frozen_model import FrozenModel
from alm_pipeline.hypernetwork.networks.hypernetwork import predict_in_parts
from alm_pipeline.hypernetwork.networks.pieces import Pieces
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import track
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.transfer.composition import compose_rows
from alm_pipeline.transfer.fvt import VocabularyMap, map_vocabulary
from alm_pipeline.transfer.initialization import Initialization
from storage.errors import UserError

EVALUATIONS = pa.schema(
    [("step", pa.int64()), ("tokenizer", pa.string()), ("method", pa.string()), ("bits_per_byte", pa.float64())]
)
"""The columns of `evaluations.parquet`. Methods other than `hypernetwork` are measured at step 0."""
BASELINES: tuple[Method, ...] = ("fvt", "focus")
NETWORK: Method = "hypernetwork"
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class TargetTexts:
    """Held-out texts in the tokens of a tokenizer, and how its tokens are spelled by the source's."""

    mapping: VocabularyMap
    texts: TextTokens

    @classmethod
    def of(cls, source: LoadedTokenizer, target: LoadedTokenizer, rows: int, texts: Sequence[str]) -> "TargetTexts":
        """Raises UserError if the tokenizer can't spell any of the texts."""
        batch = ByteEncoder(target).encode(texts)
        if not len(batch.token_ids):
            raise UserError(
                f"{target.name}: can't spell any of the held-out texts: name another tokenizer in evaluation.tokenizers"
            )
        kept = [batch.row_ids(row) for row in range(len(batch)) if batch.dropped[row] is None]
        mapping = map_vocabulary(source, target, rows)
        return cls(mapping, TextTokens(kept, batch.byte_lengths, batch.kinds))


class HypernetEvaluator:
    """Measures tables of several tokenizers on the same texts."""

    def __init__(
        self, frozen: FrozenModel, source: LoadedTokenizer, targets: Mapping[str, LoadedTokenizer], texts: Sequence[str]
    ) -> None:
        rows = len(frozen.source.tables[0])
        self.frozen, self.context = frozen, context_length(frozen.model.config)
        self.targets = {name: TargetTexts.of(source, target, rows, texts) for name, target in targets.items()}

    def baselines(self) -> list[dict[str, object]]:
        """Return the rows of `evaluations.parquet` that need no network."""
        return self._rows(0, [(method, None) for method in BASELINES])

    def evaluate(self, network: nn.Module, step: int) -> list[dict[str, object]]:
        """Return the network's rows of `evaluations.parquet` after `step` steps."""
        return self._rows(step, [(NETWORK, network)])

    def _rows(self, step: int, methods: Sequence[tuple[Method, nn.Module | None]]) -> list[dict[str, object]]:
        rows = list[dict[str, object]]()
        tokens = sum(len(ids) for target in self.targets.values() for ids in target.texts.ids)
        with track("evaluate", tokens * len(methods), "tokens") as advance:
            for name, target in self.targets.items():
                for method, network in methods:
                    bits = self._bits(target, self.tables(target.mapping, method, network))
                    rows.append({"step": step, "tokenizer": name, "method": method, "bits_per_byte": bits})
                    advance(sum(map(len, target.texts.ids)))
        return rows

    def tables(self, mapping: VocabularyMap, method: Method, network: nn.Module | None) -> list[Tensor]:
        """Return the tables [V, W] of a target tokenizer, as `swap_tokenizer` makes them, in float32."""
        source = self.frozen.source
        of_head = [table.of_head for table in self.frozen.tables]
        compositions = Initialization(method).compositions(mapping, len(set(of_head)))
        tables = [
            compose_rows(table, compositions[-1 if is_head else 0], mapping.source.size, 0)
            for table, is_head in zip(source.tables, of_head, strict=True)
        ]
        new = np.flatnonzero([len(pieces) > 1 for pieces in mapping.pieces])
        if network is not None and len(new):
            pieces = Pieces.of([mapping.pieces[id_] for id_ in new.tolist()], self.frozen.device)
            for table, rows in zip(tables, predict_in_parts(network, source, pieces), strict=True):
                table[torch.from_numpy(new)] = rows
        return tables

    @torch.no_grad()
    def _bits(self, target: TargetTexts, tables: Sequence[Tensor]) -> float:
        none = torch.zeros(0, dtype=torch.int64)
        logprobs: list[npt.NDArray[np.float32]] = [np.full(len(ids), np.nan, np.float32) for ids in target.texts.ids]
        for rows in self._batches(target.texts.ids):
            ids_BT = _padded([target.texts.ids[row][: self.context] for row in rows])
            numbers = self.frozen.next_tokens(tables, ids_BT, none)
            values_BT = numbers.target_logprobs_N.view(ids_BT.shape).float().cpu().numpy()
            for row, values in zip(rows, values_BT, strict=True):
                count = min(len(logprobs[row]), self.context or len(logprobs[row]))
                logprobs[row][1:count] = values[: count - 1]
        return bits_per_byte(np.concatenate(logprobs), target.texts.byte_lengths, target.texts.kinds)

    def _batches(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[list[int]]:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        batches = list[list[int]]()
        while order:
            count = max(1, _BATCH_TOKENS // len(texts[order[0]]))
            batches.append(order[:count])
            order = order[count:]
        return batches


def _padded(rows: Sequence[npt.NDArray[np.int32]]) -> Tensor:
    ids_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, ids in zip(ids_BT, rows, strict=True):
        row[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
    return ids_BT


def means(rows: Sequence[Mapping[str, object]], method: Method = NETWORK) -> dict[int, float]:
    """Return the mean bits per byte of all tokenizers by step, of a method's rows of `evaluations.parquet`."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            by_step.setdefault(int(str(row["step"])), []).append(float(str(row["bits_per_byte"])))
    return {step: float(np.mean(values)) for step, values in by_step.items()}
