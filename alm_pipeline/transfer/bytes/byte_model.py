"""Puts a model on its byte-level tokenizer: 256 bytes and the special tokens, with or without n-gram embeddings.

`AutoModelForCausalLM` and `AutoTokenizer` load the result without this package's code. Without n-gram embeddings it is
the architecture's own class with a small vocabulary. With them no class of transformers fits, so the model's folder
contains one file of code, `modeling_ngram_bytes.py`. It needs only torch and transformers, and is loaded with
`trust_remote_code=True`. Its class extends the architecture's class instead of wrapping it: the weights keep their
names, and the head, the cache and everything else that transformers does for the architecture keep working. The file
has its own model type, so that the folder is never loaded as the plain architecture, without its n-gram embeddings.

The head is not tied to the embedding any more: the input is a sum, the output a byte. Both start with the same rows
(FVT).
"""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.models.carried_code import carried_classes
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.bytes import modeling_ngram_bytes as carried
from alm_pipeline.transfer.bytes.suffix_trie import suffix_trie
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.swap import TransferResult, swap_tokenizer
from alm_pipeline.vocabulary.byte_view import tokens_by_spelling
from storage.errors import UserError

NgramRows = tuple[list[bytes], Tensor]
"""spellings, and their embeddings [spellings, H]"""


def put_on_bytes(
    model: PreTrainedModel,
    source: LoadedTokenizer,
    target: LoadedTokenizer,
    initialization: Initialization | None = None,
    *,
    ngram_embeddings: bool,
    seed: int = 0,
) -> TransferResult:
    """Put the byte-level tokenizer `target`, which was made from `source`, on the model, in place.

    Raises UserError if n-gram embeddings are wanted and the architecture does not accept embeddings instead of ids.
    """
    ngrams = _ngram_rows(model, source) if ngram_embeddings else None
    untie(model)
    result = swap_tokenizer(model, source, target, initialization or Initialization(), seed)
    if not ngrams:
        return result
    _attach(model, ngrams)
    return replace(result, ngrams=len(ngrams[0]))


def untie(model: PreTrainedModel) -> None:
    """Give the head its own copy of the embedding's rows if the two are tied. In place."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    if head.weight is embedding:
        head.weight = nn.Parameter(torch.clone(embedding.detach()))


def _ngram_rows(model: PreTrainedModel, source: LoadedTokenizer) -> NgramRows:
    """Return the rows of all tokens of 1 to 16 bytes that are not special, one per spelling."""
    check_architecture(model)
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    tokens = tokens_by_spelling(source.view, np.arange(source.view.size) < len(weight))
    short = {spelling: id_ for spelling, id_ in sorted(tokens.items()) if len(spelling) <= carried.LONGEST}
    return list(short), weight.detach()[list(short.values())]


def check_architecture(model: PreTrainedModel) -> None:
    """Raise UserError if the model's class can't have n-gram embeddings."""
    parameters = inspect.signature(model.base_model.forward).parameters
    in_transformers = all(hasattr(transformers, type(instance).__name__) for instance in (model, model.config))
    text_only = model.config.get_text_config() is model.config and model.base_model is not model
    if not (
        in_transformers and text_only and {"inputs_embeds", "past_key_values", "position_ids"} <= parameters.keys()
    ):
        raise UserError(
            f"student.ngram_embeddings: {model.config.model_type} is not a plain text decoder of transformers that "
            "accepts embeddings instead of ids: set it to false for bytes without n-gram embeddings"
        )


def _attach(model: PreTrainedModel, ngrams: NgramRows) -> None:
    spellings, rows_NH = ngrams
    trie = suffix_trie(spellings)
    config_class, model_class = carried_classes(model, carried, "NgramBytes")
    # the object gets another class, because a second copy of a large model might not fit into memory
    model.config.__class__, model.__class__ = config_class, model_class
    model.config.ngram_tokens, model.config.ngram_states = len(spellings), len(trie.bases)
    extended: Any = model
    extended.attach_ngrams()
    for name, values in trie._asdict().items():
        extended.ngrams.get_buffer(name).copy_(torch.from_numpy(values))
    extended.ngrams.embedding.weight[1:] = rows_NH
    extended.ngrams.to(model.device)
