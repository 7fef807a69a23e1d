"""A model put on its byte-level tokenizer: 256 bytes and the special tokens, with or without n-gram embeddings.

The result loads with `AutoModelForCausalLM` and `AutoTokenizer` without this package's code. Without n-gram embeddings
it is the architecture's own class with a small vocabulary. With them no architecture's class fits, so the model's
folder carries one file, `modeling_ngram_bytes.py`, which needs torch and transformers alone, and is loaded with
`trust_remote_code=True`. That class extends the architecture's own rather than standing around it: the weights keep
their names, and the head, the cache and all that transformers knows of the architecture go on working. The file has a
model type of its own, so that nothing loads the folder as the plain architecture, without its n-gram embeddings.

The head is no longer tied to the embedding: what goes in is a sum, what comes out a byte. Both get the same rows to
start with (FVT).
"""

import inspect
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from alm_pipeline.transfer.bytes import modeling_ngram_bytes as carried
from alm_pipeline.transfer.bytes.suffix_trie import suffix_trie
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.swap import swap_tokenizer
from alm_pipeline.vocabulary.byte_view import byte_view, tokens_by_spelling
from storage.errors import UserError

NgramRows = tuple[list[bytes], Tensor]
"""spellings, and [spellings, H] their embeddings"""


def put_on_bytes(
    model: PreTrainedModel,
    source: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    initialization: Initialization | None = None,
    *,
    ngram_embeddings: bool,
    seed: int = 0,
) -> dict[str, int]:
    """Put the byte-level tokenizer `target`, made of `source`, on the model, in place; how its embeddings came about.

    Raises UserError when the architecture takes no embeddings instead of ids, for n-gram embeddings.
    """
    ngrams = _ngram_rows(model, source) if ngram_embeddings else None
    untie(model)
    counts = swap_tokenizer(model, source, target, initialization or Initialization(), seed).counts()
    if ngrams:
        _attach(model, ngrams)
        counts["n-grams"] = len(ngrams[0])
    return counts


def untie(model: PreTrainedModel) -> None:
    """Give the head its own copy of the embedding's rows, where it has the same ones. In place."""
    head, own = model.get_output_embeddings(), model.get_input_embeddings().weight
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    if head.weight is own:
        head.weight = nn.Parameter(torch.clone(own.detach()))


def _ngram_rows(model: PreTrainedModel, source: PreTrainedTokenizerFast) -> NgramRows:
    """Of every token of 1 to 16 bytes that is not special, each spelling once."""
    _check_architecture(model)
    tokens = tokens_by_spelling(byte_view(source.backend_tokenizer))
    chosen = {spelling: id_ for spelling, id_ in sorted(tokens.items()) if len(spelling) <= carried.LONGEST}
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return list(chosen), weight.detach()[list(chosen.values())]


def _check_architecture(model: PreTrainedModel) -> None:
    takes = inspect.signature(model.base_model.forward).parameters
    own = all(hasattr(transformers, type(part).__name__) for part in (model, model.config))
    whole = model.config.get_text_config() is model.config and model.base_model is not model
    if not (own and whole and {"inputs_embeds", "past_key_values", "position_ids"} <= takes.keys()):
        raise UserError(
            f"student.ngram_embeddings: {model.config.model_type} is no plain text decoder of transformers that takes "
            "embeddings instead of ids: set it to false for bytes without them"
        )


def _attach(model: PreTrainedModel, ngrams: NgramRows) -> None:
    spellings, rows_NH = ngrams
    trie = suffix_trie(spellings)
    config_class, model_class = carried_classes(model)
    # another class for the same object: a second copy of a large model might not fit into memory
    model.config.__class__, model.__class__ = config_class, model_class
    model.config.ngram_tokens, model.config.ngram_states = len(spellings), len(trie.bases)
    extended: Any = model
    extended.attach_ngrams()
    for name, values in trie._asdict().items():
        extended.ngrams.get_buffer(name).copy_(torch.from_numpy(values))
    extended.ngrams.embedding.weight[1:] = rows_NH
    extended.ngrams.to(model.device)


def carried_classes(model: PreTrainedModel) -> tuple[Any, Any]:
    """The classes of the configuration and the model in the file that the model's folder carries."""
    name = Path(carried.__file__).stem
    text = Path(carried.__file__).read_text(encoding="utf-8")
    text = text.replace("LlamaConfig", type(model.config).__name__)
    text = text.replace("LlamaForCausalLM", type(model).__name__)
    with tempfile.TemporaryDirectory() as scratch:
        # transformers' cache of such files goes by the folder's name
        folder = Path(scratch) / f"ngram_bytes_{type(model).__name__}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        names = (f"{name}.NgramBytesConfig", f"{name}.NgramBytesForCausalLM")
        classes: list[Any] = [get_class_from_dynamic_module(which, folder) for which in names]
    config_class, model_class = classes
    # so that save_pretrained puts the file into the folder, and its classes into config.json
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
    return config_class, model_class
