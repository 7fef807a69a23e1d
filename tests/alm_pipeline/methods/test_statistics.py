"""The measures of a comparison against sums by hand, and intervals against how often they hold the truth."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest

from alm_pipeline.methods.report import ComparisonReport
from alm_pipeline.methods.statistics import RETENTION, MixedDomains, half_interval, measures
from alm_pipeline.methods.tables import shown_tables
from alm_pipeline.methods.units import BITS, KL, unit_table

Units = Mapping[str, tuple[float, float]]


def tables(of_methods: Mapping[str, Sequence[Units]], measure: str = BITS) -> dict[str, list[pa.Table]]:
    return {name: [unit_table("here", measure, units) for units in of_seeds] for name, of_seeds in of_methods.items()}


def test_a_measure_is_the_mean_over_seeds_of_a_ratio_of_sums() -> None:
    first = [{"a": (2.0, 1.0), "b": (6.0, 3.0)}, {"a": (4.0, 1.0), "b": (8.0, 3.0)}]
    second = [{"b": (3.0, 3.0), "a": (1.0, 1.0)}, {"b": (6.0, 3.0), "a": (2.0, 1.0)}]
    (measure,) = measures(tables({"first": first, "second": second}), "first")
    assert measure.values["first"].value == (8 / 4 + 12 / 4) / 2
    assert measure.values["second"].value == (4 / 4 + 8 / 4) / 2
    assert measure.differences["second"].value == -1.0
    assert measure.units == 2
    assert "first" not in measure.differences


def test_only_units_that_all_have_are_compared() -> None:
    whole, part = {"a": (2.0, 1.0), "b": (9.0, 1.0), "c": (4.0, 1.0)}, {"a": (1.0, 1.0), "c": (1.0, 1.0)}
    (measure,) = measures(tables({"whole": [whole], "part": [part]}), "whole")
    assert (measure.values["whole"].value, measure.units) == (3.0, 2)


def test_retention_is_of_the_original_and_only_of_bits() -> None:
    of_methods = {"alm": [{"a": (4.0, 1.0)}, {"a": (2.0, 1.0)}], "original": [{"a": (2.0, 1.0)}]}
    found = {measure.name: measure for measure in measures(tables(of_methods), "alm")}
    assert found[RETENTION].values["alm"].value == (0.5 + 1.0) / 2
    assert found[RETENTION].values["original"].value == 1.0
    assert [measure.name for measure in measures(tables(of_methods, "acc"), "alm")] == ["acc"]


def test_a_model_without_seeds_is_compared_with_each_seed() -> None:
    of_methods = {"alm": [{"a": (4.0, 1.0)}, {"a": (2.0, 1.0)}], "teacher": [{"a": (1.0, 1.0)}]}
    (measure,) = measures(tables(of_methods), "alm")
    assert measure.differences["teacher"].value == -2.0
    assert measure.differences["teacher"].half > 0


def test_what_nothing_is_known_of_has_no_interval() -> None:
    (measure,) = measures(tables({"alm": [{"a": (4.0, 1.0)}], "sft": [{"a": (3.0, 1.0)}]}), "alm")
    assert math.isnan(measure.values["alm"].half)
    assert math.isnan(measure.differences["sft"].half)
    assert math.isnan(half_interval(math.nan, math.nan, 1))


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("documents", [1, 2, 5])
def test_an_interval_of_the_seeds_alone_is_said_to_be(documents: int, seeds: int) -> None:
    of_seeds = [{str(k): (float(k + seed), 1.0) for k in range(documents)} for seed in range(seeds)]
    report = ComparisonReport.of(tables({"alm": of_seeds, "sft": of_seeds}), [], "alm", "here")
    (table, _) = shown_tables(report.document())
    assert (documents == 1 and seeds > 1) == ("intervals are of the seeds alone" in table.title)
    (measure,) = report.measures
    known = {"units": documents > 1, "seeds": seeds > 1}
    assert measure.varied == (" and ".join(name for name, varies in known.items() if varies) or "nothing")


def test_one_document_of_a_source_is_said_of_the_mean() -> None:
    """The other source's documents vary, but the mean of both has no resamples."""
    of_sources = {"maths": 1, "code": 4}
    of_seeds = [
        pa.concat_tables(
            unit_table(domain, BITS, {str(k): (k + seed + 1.0, 1.0) for k in range(count)})
            for domain, count in of_sources.items()
        )
        for seed in range(2)
    ]
    report = ComparisonReport.of({"alm": of_seeds}, [], "alm", "both", {"maths": 0.5, "code": 0.5})
    titles = {
        table.title.split(":")[0].split(" ")[0].rstrip(","): table.title for table in shown_tables(report.document())
    }
    alone = {name for name, title in titles.items() if "intervals are of the seeds alone" in title}
    assert alone == {"both", "maths"}


def test_without_units_of_a_size_there_is_no_value() -> None:
    (measure,) = measures(tables({"alm": [{"a": (0.0, 0.0), "b": (0.0, 0.0)}]}), "alm")
    assert math.isnan(measure.values["alm"].value)
    assert measure.units == 0


def test_a_mixture_is_the_mean_of_its_sources_which_are_samples_of_their_own() -> None:
    """Also where both sources have the same numbers: then the mean of the two is twice as certain in its variance."""
    random = np.random.default_rng(0)
    units = [{str(k): (float(random.normal(2 + worse, 1)), 1.0) for k in range(60)} for worse in (0, 1)]
    of_methods = {
        method: [pa.concat_tables([unit_table(domain, BITS, of_method) for domain in ("maths", "code")])]
        for method, of_method in zip(("a", "b"), units, strict=True)
    }
    mixture = MixedDomains("both", {"maths": 0.25, "code": 0.75})
    found = {measure.domain: measure for measure in measures(of_methods, "a", mixture)}
    assert list(found) == ["both", "maths", "code"]
    difference, of_one = found["both"].differences["b"], found["maths"].differences["b"]
    assert difference.value == pytest.approx(of_one.value)
    assert difference.half == pytest.approx(of_one.half * math.hypot(0.25, 0.75), rel=0.1)
    assert found["both"].units == 120


def test_the_means_of_a_mixture_are_by_the_shares_of_those_that_have_a_measure() -> None:
    domains = {"maths": {"m": (1.0, 1.0)}, "code": {"c": (6.0, 2.0)}}
    table = pa.concat_tables(unit_table(domain, BITS, units) for domain, units in domains.items())
    table = pa.concat_tables([table, unit_table("code", KL, {"c": (1.0, 2.0)})])
    found = measures({"alm": [table]}, "alm", MixedDomains("both", {"maths": 0.75, "code": 0.25}))
    value = {(measure.domain, measure.name): measure.values["alm"].value for measure in found}
    assert value["both", BITS] == 0.75 * 1.0 + 0.25 * 3.0
    assert value["both", KL] == 0.5


@pytest.mark.parametrize(("seeds", "of_seed"), [(1, 0.0), (2, 0.1), (3, 0.1), (3, 0.01), (5, 0.03)])
def test_intervals_of_differences_hold_the_truth_as_often_as_they_say(seeds: int, of_seed: float) -> None:
    """A method is 0.05 worse; documents are hard for both, and each seed shifts a student by `of_seed`."""
    random, held, tries, documents, truth = np.random.default_rng(seeds), 0, 200, 50, 0.05
    for _ in range(tries):
        sizes = random.integers(50, 150, documents).astype(float)
        hard = random.normal(2.0, 0.5, documents)

        def student(mean: float, hard: np.ndarray = hard, sizes: np.ndarray = sizes) -> Units:  # type: ignore[type-arg]
            rates = hard + mean + random.normal(0, of_seed) + random.normal(0, 0.1, documents)
            return {str(k): (float(rates[k] * sizes[k]), float(sizes[k])) for k in range(documents)}

        of_methods = {"a": [student(0.0) for _ in range(seeds)], "b": [student(truth) for _ in range(seeds)]}
        (measure,) = measures(tables(of_methods), "a")
        value, half = measure.differences["b"]
        held += abs(value - truth) <= half
    assert held / tries >= 0.91  # the documents' part counts what seeds and documents have in common twice
    assert seeds > 1 or held / tries <= 0.99
