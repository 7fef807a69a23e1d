"""Whether a fast engine gives the ids of the standard one."""

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.standard import Engine


def first_difference(engine: Engine, standard: Engine, *, special_literals: bool) -> str | None:
    """The first of the built-in adversarial texts to which the engines give other ids."""
    encoded = [each.encode(ADVERSARIAL_TEXTS, special_literals=special_literals) for each in (engine, standard)]
    triples = zip(ADVERSARIAL_TEXTS, *encoded, strict=True)
    return next((text for text, ours, theirs in triples if ours != theirs), None)
