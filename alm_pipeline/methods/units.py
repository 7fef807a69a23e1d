"""What a comparison keeps of each measured model: sums by document, or by question of a task.

Every measure is a ratio of sums over such units: bits over bytes, divergences over words, right answers over questions.
So means, differences and their intervals are arithmetic on a small table, and nothing is measured again for them. The
tables are kept in the comparison's folder, under a fingerprint of the model and of what it was measured on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import user_error
from storage.fingerprints import fingerprint
from storage.urls import join_url, publish, read_bytes

BITS, KL = "bits per byte", "KL per word"
UNITS = pa.schema(
    [
        ("domain", pa.string()),
        ("measure", pa.string()),
        ("unit", pa.string()),
        ("sum", pa.float64()),
        ("size", pa.float64()),
    ]
)
"""The columns of a model's measurements. `domain` is a corpus or a task, `unit` a document's id or a question's number.
A measure is Σ sum / Σ size: `bits per byte` of bits and bytes, `KL per word` of nats and words, a task's metric of
scores and 1."""
LOWER_IS_BETTER = frozenset({BITS, KL})
"""Of tasks, higher is better."""
_VERSION = 1


@dataclass(frozen=True)
class UnitStore:
    """The measurements in a comparison's folder."""

    url: str

    def of(self, identity: Mapping[str, Any], measure: Callable[[], pa.Table]) -> pa.Table:
        """Return the measurement of this identity, which `measure` makes if it is not there."""
        file = join_url(self.url, "units", f"{fingerprint({**identity, 'version': _VERSION})}.parquet")
        content = read_bytes(file)
        if content is None:
            sink = pa.BufferOutputStream()
            pq.write_table(measure().cast(UNITS), sink, compression="zstd")
            content = publish(file, sink.getvalue().to_pybytes())
        with user_error(f"{file}: is not a measurement", "delete it, and it is made again"):
            return pq.read_table(pa.BufferReader(content), schema=UNITS)


def unit_table(domain: str, measure: str, units: Mapping[str, tuple[float, float]]) -> pa.Table:
    """Return the table of one measure; `units` has (sum, size) by name."""
    sums, sizes = zip(*units.values(), strict=True) if units else ((), ())
    count = len(units)
    return pa.table([[domain] * count, [measure] * count, list(units), list(sums), list(sizes)], schema=UNITS)
