"""The recipes' own corpora, as they are read without an option."""

from collections import Counter

import pytest

from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.recipes.recipes import RECIPES, recipe, required_by


@pytest.mark.parametrize("name", [name for name in RECIPES if "corpus" not in required_by(name)])
def test_every_recipes_corpus_has_examples(name: str) -> None:
    assert next(iter_examples(recipe(name).corpus, Counter())).text
