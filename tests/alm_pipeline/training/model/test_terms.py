"""The table of loss terms: it is complete, and what it says of a term is what the configuration knows."""

from typing import get_args

import pytest

from alm_pipeline.config import LIVE_TERMS, TOP_TERMS, ObjectiveConfig, Term
from alm_pipeline.training.model.terms import TERMS, make_projections, needed_mappings
from tests import tiny


def test_every_term_is_in_the_table() -> None:
    assert set(TERMS) == set(get_args(Term))


def test_the_configuration_knows_the_terms_that_need_the_teacher() -> None:
    assert {term for term, rule in TERMS.items() if rule.needs_teacher} == LIVE_TERMS


def test_the_configuration_knows_the_terms_that_need_the_likeliest_tokens() -> None:
    assert {term for term, rule in TERMS.items() if rule.needs_top} == TOP_TERMS


@pytest.mark.parametrize("term", TERMS)
def test_what_only_a_teacher_can_provide_needs_one(term: Term) -> None:
    rule = TERMS[term]
    assert rule.needs_teacher or rule.mapping is None
    assert rule.needs_teacher or rule.projection(8, 4) is None
    assert needed_mappings(ObjectiveConfig(terms={term: 1.0})) == ({rule.mapping} - {None})


def test_the_terms_that_train_a_projection() -> None:
    """Hidden states are brought from the student's width to the teacher's, so equal widths need none."""
    made = {term for term, rule in TERMS.items() if rule.projection(8, 4) is not None}
    assert made == {"latents", "dskd"}
    assert TERMS["latents"].projection(8, 8) is None
    model = tiny.tiny_llama(300)
    projections = make_projections(model, model, ObjectiveConfig(terms={"alm": 1.0, "latents": 1.0, "dskd": 1.0}), 0)
    assert list(projections) == ["dskd"]
