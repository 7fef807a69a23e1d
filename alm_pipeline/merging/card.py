"""The model card of a merged model: its parents, and how it was made of them."""

from alm_pipeline.merging.rule import MergeRule
from alm_pipeline.models.reference import ModelReference
from storage.printed.inert import one_line

_IDENTITY_CHARACTERS = 16


def merge_card(base: ModelReference, tuned: ModelReference, rule: MergeRule, template: str) -> str:
    """Return the card, in Markdown."""
    rows = [
        ("base", f"{one_line(base.name)} ({base.identity[:_IDENTITY_CHARACTERS]})"),
        ("tuned child", f"{one_line(tuned.name)} ({tuned.identity[:_IDENTITY_CHARACTERS]})"),
        ("rule", str(rule)),
        ("tokenizer, template and settings of", one_line(template)),
    ]
    table = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)
    return f"""---
library_name: transformers
tags:
- merge
- alm-pipeline
---

# A model between a base and its tuned child

The weights are those of the base at weight 0 and those of the child at weight 1, tensor by tensor.

| | |
|---|---|
{table}

Made by `alm merge`. The hashes in parentheses are of the parents' weights, configurations and code.
"""
