"""What a comparison's measures are, how methods differ from the first one, and how sure that is.

Two things vary: the documents that are measured on, and the seed. Each has an interval of its own, and the squares of
their half-widths are added (MOVER: Zou, Donner, Statistics in Medicine 27, 2008). That of the documents is normal, with
the variance over resamples of them, the same ones for both methods (a paired bootstrap), of the difference's mean over
seeds. That of the seeds is Student's t, with the variance of the difference from seed to seed. A single seed says
nothing of other seeds, and the interval then holds for this student alone; a single document says nothing of others.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import norm
from scipy.stats import t as student_t

from alm_pipeline.evaluation.bootstrap import RESAMPLES, resample_counts
from alm_pipeline.methods.registry import ORIGINAL
from alm_pipeline.methods.units import BITS, KL

Float64s = npt.NDArray[np.float64]
RETENTION = "retention"
"""the original's bits per byte over a model's: 1 is as good as the original"""
Varied = Literal["units and seeds", "units", "seeds", "nothing"]
"""what intervals count as varying: a single document (unit) or seed says nothing of others"""
_CONFIDENCE = 0.975


class Estimate(NamedTuple):
    """A number and half of its 95 % interval; NaN if nothing is known of it (one document, one seed)."""

    value: float
    half: float


@dataclass(frozen=True)
class Measure:
    """A measure of all methods in one domain."""

    domain: str
    name: str
    values: Mapping[str, Estimate]
    """the mean over seeds by method"""
    differences: Mapping[str, Estimate]
    """from the reference, by each other method"""
    units: int
    """the documents or questions that all methods were measured on"""
    varied: Varied
    """what the intervals know of; of a mixture's mean, all sources have to have several documents"""

    @classmethod
    def of(cls, domain: str, name: str, ratios: Mapping[str, "SeedRatios"], reference: str, units: int) -> "Measure":
        """Return a measure of the methods that have it."""
        base = ratios.get(reference)
        others = {method: of_method for method, of_method in ratios.items() if method != reference}
        differences = {method: (of_method - base).estimate() for method, of_method in others.items()} if base else {}
        values = {method: of_method.estimate() for method, of_method in ratios.items()}
        return cls(domain, name, values, differences, units, _varied(ratios.values()))


def _varied(ratios: Collection["SeedRatios"]) -> Varied:
    of_units = any(each.resampled_SB.size for each in ratios)
    if any(len(each.values_S) > 1 for each in ratios):
        return "units and seeds" if of_units else "seeds"
    return "units" if of_units else "nothing"


class MixedDomains(NamedTuple):
    """Domains that are the sources of one mixture."""

    name: str
    """the domain that all of them are together"""
    shares: Mapping[str, float]
    """by domain, with the sum 1"""


def measures(
    tables: Mapping[str, Sequence[pa.Table]], reference: str, mixture: MixedDomains | None = None
) -> list[Measure]:
    """Return every measure of every domain, and how methods differ in it from the reference.

    `tables` has the units of each method's students (`UNITS`), seed by seed: the same seeds for all, or one table for a
    model that has none. Units that a student was not measured on are left out for all. `RETENTION` is there if
    `ORIGINAL` is. Of a mixture, the first measures are means over its sources by their shares.
    """
    sums = {method: [_by_measure(table) for table in of_seeds] for method, of_seeds in tables.items()}
    keys = dict.fromkeys(key for of_seeds in sums.values() for key in of_seeds[0])
    whole = _measures_of_mixture(mixture, keys, sums, reference) if mixture else ()
    return [*whole, *(measure for key in keys for measure in _measures_of(key, sums, reference))]


Key = tuple[str, str]
Units = Mapping[str, tuple[float, float]]
Sums = Mapping[str, Sequence[Mapping[Key, Units]]]
"""each student's units by domain and measure: by method, seed by seed"""


def _by_measure(table: pa.Table) -> Mapping[Key, Units]:
    """Return a student's (sum, size) by unit, of each domain and measure."""
    found: dict[Key, dict[str, tuple[float, float]]] = {}
    for row in table.to_pylist():
        found.setdefault((row["domain"], row["measure"]), {})[row["unit"]] = row["sum"], row["size"]
    return found


def _measures_of(key: Key, sums: Sums, reference: str) -> Iterator[Measure]:
    ratios, units = _ratios_of(key, sums)
    yield from _named(*key, ratios, reference, units)


def _measures_of_mixture(mixture: MixedDomains, keys: Collection[Key], sums: Sums, reference: str) -> Iterator[Measure]:
    """Yield means over sources, each of which is a sample of its own; one that has no such measure does not count."""
    for name in (BITS, KL):
        # with a seed for each: draws of the same numbers would have the sources vary together
        found = {
            domain: _ratios_of((domain, name), sums, seed)
            for seed, domain in enumerate(mixture.shares)
            if (domain, name) in keys
        }
        if found:
            shares = np.array([mixture.shares[domain] for domain in found])
            methods = [method for method in sums if all(method in ratios for ratios, _ in found.values())]
            means = {
                method: SeedRatios.mean([ratios[method] for ratios, _ in found.values()], shares / shares.sum())
                for method in methods
            }
            yield from _named(mixture.name, name, means, reference, sum(units for _, units in found.values()))


def _named(domain: str, name: str, ratios: Mapping[str, "SeedRatios"], reference: str, units: int) -> Iterator[Measure]:
    """Yield a measure, and what of it was kept of the original."""
    yield Measure.of(domain, name, ratios, reference, units)
    if name == BITS and ORIGINAL in ratios:
        kept = {method: ratios[ORIGINAL] / of_method for method, of_method in ratios.items()}
        yield Measure.of(domain, RETENTION, kept, reference, units)


def _ratios_of(key: Key, sums: Sums, seed: int = 0) -> tuple[dict[str, "SeedRatios"], int]:
    """Return a measure of the methods that have it, and the number of units that it is of."""
    having = {method: of_seeds for method, of_seeds in sums.items() if all(key in of_seed for of_seed in of_seeds)}
    names = _shared_units([of_seed[key] for of_seeds in having.values() for of_seed in of_seeds])
    pairs = {
        method: np.array([[of_seed[key][name] for name in names] for of_seed in of_seeds]).reshape(len(of_seeds), -1, 2)
        for method, of_seeds in having.items()
    }
    counted = np.any([of_method[..., 1].any(0) for of_method in pairs.values()], axis=0)
    units = int(counted.sum())
    drawn_BU = resample_counts(np.arange(units), RESAMPLES if units > 1 else 0, seed).astype(np.float64)
    return {method: SeedRatios.of(of_method[:, counted], drawn_BU) for method, of_method in pairs.items()}, units


def _shared_units(of_students: Sequence[Units]) -> list[str]:
    """Return the units that all students have, in the first one's order."""
    return [name for name in of_students[0] if all(name in units for units in of_students)]


@dataclass(frozen=True)
class SeedRatios:
    """A measure of S students that differ in their seed, as it is and on B resamples of its units."""

    values_S: Float64s
    resampled_SB: Float64s
    """without columns if there is a single unit, which says nothing of others"""

    @classmethod
    def of(cls, pairs_SU2: Float64s, drawn_BU: Float64s) -> "SeedRatios":
        """`pairs_SU2` has (sum, size) of the same units for each seed, `drawn_BU` how often resamples have each."""
        sums_SU, sizes_SU = pairs_SU2[..., 0], pairs_SU2[..., 1]
        return cls(_ratio(sums_SU.sum(1), sizes_SU.sum(1)), _ratio(sums_SU @ drawn_BU.T, sizes_SU @ drawn_BU.T))

    @classmethod
    def mean(cls, ratios: Sequence["SeedRatios"], shares: Float64s) -> "SeedRatios":
        """Return the mean of the same students' ratios in several domains, by shares with the sum 1.

        It has no resamples if one of them has none.
        """
        drawn = min(each.resampled_SB.shape[1] for each in ratios)
        resampled = np.stack([each.resampled_SB[:, :drawn] for each in ratios])
        values = np.stack([each.values_S for each in ratios])
        return cls(np.tensordot(shares, values, 1), np.tensordot(shares, resampled, 1))

    def __sub__(self, other: "SeedRatios") -> "SeedRatios":
        """Return the differences, seed by seed, on the same resamples; a model without seeds is the same for all."""
        return SeedRatios(self.values_S - other.values_S, self.resampled_SB - other.resampled_SB)

    def __truediv__(self, other: "SeedRatios") -> "SeedRatios":
        """Return the quotients likewise."""
        return SeedRatios(self.values_S / other.values_S, self.resampled_SB / other.resampled_SB)

    def estimate(self) -> Estimate:
        """Return the mean over seeds, and half of its 95 % interval."""
        seeds = len(self.values_S)
        value = float(self.values_S.mean())
        of_units = float(np.nanvar(self.resampled_SB.mean(0))) if self.resampled_SB.size else math.nan
        of_seeds = float(self.values_S.var(ddof=1)) / seeds if seeds > 1 else math.nan
        return Estimate(value, half_interval(of_units, of_seeds, seeds))


def _ratio(sums: Float64s, sizes: Float64s) -> Float64s:
    """Return Σ sums / Σ sizes, NaN where nothing has a size."""
    return np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)


def half_interval(of_units: float, of_seeds: float, seeds: int) -> float:
    """Return half of a 95 % interval from the two variances of a mean, each NaN where it is not known."""
    if math.isnan(of_units) and math.isnan(of_seeds):
        return math.nan
    squares = [norm.ppf(_CONFIDENCE) ** 2 * of_units, student_t.ppf(_CONFIDENCE, seeds - 1) ** 2 * of_seeds]
    return math.sqrt(np.nansum(squares))
