"""All recipes as complete configurations."""

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource
from alm_pipeline.recipes.recipes import RECIPES, recipe, required_by

CORPUS = CorpusConfig(name="texts", source=FilesSource(urls=("texts.jsonl",)))


def complete_recipes() -> dict[str, AlmConfig]:
    """Return each recipe by name, with a corpus and models where it needs them."""
    values = {"corpus": CORPUS, "teacher": "TEACHER", "student": "STUDENT"}
    return {name: recipe(name, **{needed: values[needed] for needed in required_by(name)}) for name in RECIPES}
