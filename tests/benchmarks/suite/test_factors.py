"""Every declared student has a valid configuration, and each experiment compares different ones."""

import itertools
from pathlib import Path

import pytest

from benchmarks.suite.factors import EXPERIMENTS, PAIRS, Experiment, Variant
from benchmarks.suite.runs import SIZES, Suite
from benchmarks.suite.texts import DOMAINS, SHARES, TEXT_SETS

FILES = {share: {domain: Path(f"{share}-{domain}.jsonl") for domain in DOMAINS} for share in SHARES}


class Named(Suite):
    """Models and texts by name alone."""

    teacher = "teacher"
    other_body = "other"
    files = FILES


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("size", SIZES)
def test_variants_are_valid_and_differ(name: str, size: str) -> None:
    experiment, suite = EXPERIMENTS[name], Named(Path(), Path(), "tuning", SIZES[size])
    for pair in PAIRS:
        configs = [suite.configuration(pair, variant, 1) for variant in experiment.variants]
        assert all(one != other for one, other in itertools.combinations(configs, 2))
        assert {config.train.seed for config in configs} == {1}
    assert len({variant.name for variant in experiment.variants}) == len(experiment.variants) > 1


def test_the_first_variant_is_the_reference() -> None:
    experiment: Experiment = EXPERIMENTS["forms"]
    assert experiment.reference.name == "alm, end"
    assert experiment.reference.settings["objective.debias"] == "end"


def test_text_sets_have_students_of_their_own() -> None:
    reference = EXPERIMENTS["forms"].reference
    suites = [Named(Path(), Path(), texts, SIZES["small"]) for texts in TEXT_SETS]
    sources = [suite.configuration("bpe", reference, 0).corpus.source for suite in suites]
    assert sources[0] != sources[1]


def test_rates_are_relative_to_the_size() -> None:
    suite = Named(Path(), Path(), "tuning", SIZES["small"])
    slow = suite.configuration("bpe", Variant("slow", {}, rate=0.5, embedding_rate=3.0), 0).train
    assert slow.learning_rate == SIZES["small"].learning_rate / 2
    assert set(slow.learning_rates.values()) == {3 * slow.learning_rate}
