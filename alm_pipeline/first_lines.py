"""The first lines of a run: what its recipe sets beyond what was asked, and what a template makes of the first row."""

import textwrap
from collections import Counter

import yaml

from alm_pipeline.config import AlmConfig, CorpusConfig
from alm_pipeline.corpus.documents import Document, read_documents
from alm_pipeline.naming.recipe_choices import recipe_choices
from alm_pipeline.recipes.overrides import Overrides
from storage.errors import UserError, is_temporary

_LONGEST = 200


def first_lines(config: AlmConfig, recipe: str | None, overrides: Overrides) -> list[str]:
    """Return the lines; `recipe` is the name of the recipe that the configuration was made from, if any."""
    choices = recipe_choices(recipe, config, overrides) if recipe else []
    return [*choices, *(line for part in config.parts for line in template_lines(part.texts))]


def first_document(corpus: CorpusConfig) -> Document:
    """Return the corpus's first text or conversation. Raises UserError if it has none, or can't be read."""
    dropped: Counter[str] = Counter()
    for document in read_documents(corpus, dropped):
        return document
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "no rows"
    raise UserError(
        f"corpus {corpus.name}: has no text or conversation ({reasons}); set corpus.text or corpus.messages"
    )


def template_lines(corpus: CorpusConfig) -> list[str]:
    """Fill the corpus's template of columns with the first row; return nothing without a template or a row.

    What can't be read here is reported by the stage that reads all of it.
    """
    if corpus.messages is not None or "{" not in corpus.text:
        return []
    try:
        document = first_document(corpus)
    except (UserError, OSError):
        return []
    except Exception as error:
        if is_temporary(error):
            return []
        raise
    assert document.text is not None
    template = yaml.safe_dump(corpus.text, default_style='"', width=10**6, allow_unicode=True).strip()
    text = textwrap.shorten(document.text.replace("\n", "⏎"), _LONGEST, placeholder=" …")
    return [f"the text {template} of the first row is:", f"  {text}"]
