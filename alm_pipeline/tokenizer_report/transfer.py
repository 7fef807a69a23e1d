"""What moving a model to another tokenizer would change: its tables by token, and how much text fits its context.

The model is built without weights, so none are fetched.
"""

from typing import Any

from alm_pipeline.models.reference import ModelReference
from alm_pipeline.tokenizer_report.encoded import Sample


def transfer_rows(name: str, sample: Sample, *, trust_remote_code: bool = False) -> list[dict[str, Any]]:
    """Return a row for each tokenizer; the first is the model's own, which has the rows that the model has now.

    A transfer gives the tables a row for each id up to the highest, and a tied head none of its own. Raises UserError
    for a model that can't be built, or has other tables by token.
    """
    import torch

    from alm_pipeline.models.configuration import empty_model, refuse_other_tables
    from alm_pipeline.transfer.swap import embedding_tables

    model = ModelReference(name, trust_remote_code)
    config = model.load_config()
    refuse_other_tables(config, name)
    with torch.device("meta"):
        empty = empty_model(config, name, trust_remote_code=trust_remote_code)
    tables = [table.value for table in embedding_tables(empty)]
    total, by_token = empty.num_parameters(), sum(table.numel() for table in tables)
    per_row = sum(table.numel() // len(table) for table in tables)
    tokens = [int(texts.tokens.sum()) for texts in sample.encoded]
    size = int(sample.sizes.sum())
    rows = [model.vocabulary_rows, *(texts.view.size for texts in sample.encoded[1:])]
    return [
        {
            "model": name,
            "tokenizer": texts.name,
            "rows": count,
            "table_parameters": by_token if place == 0 else count * per_row,
            "parameters": total if place == 0 else total - by_token + count * per_row,
            "parameter_change": 0 if place == 0 else count * per_row - by_token,
            "relative_tokens": tokens[place] / tokens[0],
            "context_bytes": round(model.context_length * size / tokens[place]) if model.context_length else None,
        }
        for place, (texts, count) in enumerate(zip(sample.encoded, rows, strict=True))
    ]
