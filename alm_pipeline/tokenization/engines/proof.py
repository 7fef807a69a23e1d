"""Whether a fast engine gives the ids of the standard one."""

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.standard import Engine


def first_difference(engine: Engine, standard: Engine, *, special_literals: bool) -> str | None:
    """Return the first built-in adversarial text to which the two engines give different ids, or None."""
    ids, standard_ids = (
        either.encode(ADVERSARIAL_TEXTS, special_literals=special_literals) for either in (engine, standard)
    )
    triples = zip(ADVERSARIAL_TEXTS, ids, standard_ids, strict=True)
    return next((text for text, row, standard_row in triples if row != standard_row), None)
