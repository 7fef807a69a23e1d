"""A causal language model over bytes with n-gram embeddings. This file is part of the model's folder and needs only
torch and transformers: load the folder with `trust_remote_code=True`.

Ids below 256 are bytes, the others special tokens. The input of the first layer at a byte is the sum of the byte's own
embedding and the frozen embedding of the longest token of a former vocabulary that ends there (arXiv 2503.20083). That
token is a suffix of the bytes since the last special token, the start of the text, or the start of an example in a
packed row. Nothing is added at a special token, or where no token ends.

Everything else is the architecture's: this file is written with the names of its two classes, and looks up what is
added before the architecture's own model runs. During generation, the cache holds the bytes before the new ones.

Shapes: B rows, S ids per row, P ids before them, N flat ids, H hidden width.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig as ArchitectureConfig
from transformers import LlamaForCausalLM as Architecture

BYTES = 256
LONGEST = 16
"""bytes of the longest token that is looked up"""
_BLOCK = 2**15
"""ids looked up together on a processor: their data fits in its cache"""


class NgramBytesConfig(ArchitectureConfig):
    """The architecture's configuration, with `ngram_tokens` (former tokens) and `ngram_states` (their trie's size)."""

    # not the architecture's own type: the model would load without this file, and without n-gram embeddings
    model_type = "ngram_bytes"


class Ngrams(nn.Module):
    """Finds the longest token that ends at each byte, and its embedding.

    The tokens, spelled backwards, form a double-array trie: a byte leads from `state` to `bases[state] + byte` if the
    parent of that state is `state`, and nowhere otherwise. `tokens` has the longest token on the way to each state.
    Token 0 means none, and its embedding is zero.
    """

    bases: Tensor
    parents: Tensor
    tokens: Tensor

    def __init__(self, embedding: nn.Module, tokens: int, states: int) -> None:
        """Make empty tables; `embedding` is the model's own."""
        super().__init__()
        self.register_buffer("bases", torch.zeros(states, dtype=torch.int32))
        self.register_buffer("parents", torch.full((states,), -1, dtype=torch.int32))
        self.register_buffer("tokens", torch.zeros(states, dtype=torch.int32))
        self.embedding = _frozen(embedding, tokens + 1)

    def forward(self, ids_BS: Tensor, ordinary_BS: Tensor, starts_BS: Tensor) -> Tensor:
        """[B, S, H]; `ordinary` marks bytes that are looked up, `starts` the first id of each example."""
        return self.embedding(self.longest(ids_BS, ordinary_BS, starts_BS))  # type: ignore[no-any-return]

    @torch.no_grad()
    def longest(self, ids_BS: Tensor, ordinary_BS: Tensor, starts_BS: Tensor) -> Tensor:
        """[B, S] the longest token that ends at each place."""
        bytes_N = torch.where(ordinary_BS, ids_BS, 0).flatten().to(torch.int32)
        runs_N = _runs(ordinary_BS, starts_BS).flatten()
        before_N = nn.functional.pad(bytes_N, (LONGEST - 1, 0))
        block = max(1, len(bytes_N)) if bytes_N.is_cuda else _BLOCK
        blocks = [
            self._ends_at(before_N[first : first + block + LONGEST - 1], runs_N[first : first + block])
            for first in range(0, max(1, len(bytes_N)), block)
        ]
        return torch.cat(blocks).view_as(ids_BS)

    def _ends_at(self, before_N: Tensor, runs_N: Tensor) -> Tensor:
        """[N] the tokens of N bytes, with the 15 bytes before them; `runs` is how far back each may look."""
        states_N, alive_N = torch.zeros_like(before_N[: len(runs_N)]), runs_N > 0
        for back in range(LONGEST):
            first = LONGEST - 1 - back
            next_N = self.bases.index_select(0, states_N) + before_N[first : first + len(runs_N)]
            alive_N = alive_N & (self.parents.index_select(0, next_N) == states_N) & (runs_N > back)
            states_N = torch.where(alive_N, next_N, states_N)
        return self.tokens.index_select(0, states_N)


def _frozen(embedding: Any, rows: int) -> Any:
    """Return untrained rows of zeros, in a module that scales them as the model's own embedding does (as Gemma's)."""
    frozen, weight = copy.deepcopy(embedding), embedding.weight
    frozen.padding_idx = None
    # not a parameter: transformers trains every parameter that it loads
    del frozen.weight
    frozen.register_buffer("weight", torch.zeros(rows, weight.shape[1], dtype=weight.dtype))
    return frozen


def _runs(ordinary_BS: Tensor, starts_BS: Tensor) -> Tensor:
    """[B, S] the number of connected bytes that end at each place; 0 if there is no byte."""
    places_S = torch.arange(ordinary_BS.shape[1], device=ordinary_BS.device)
    last_BS = torch.where(starts_BS, places_S - 1, -1)
    last_BS = torch.where(ordinary_BS, last_BS, places_S)
    return places_S - last_BS.cummax(1).values


class NgramBytesForCausalLM(Architecture):
    """The architecture's model, with n-gram embeddings added to its own."""

    config_class = NgramBytesConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.attach_ngrams()

    def attach_ngrams(self) -> None:
        """Add empty n-gram embeddings of the configured size."""
        self.ngrams = Ngrams(self.get_input_embeddings(), self.config.ngram_tokens, self.config.ngram_states)
        # frozen: devices do not need to synchronize them at every step
        self._ddp_params_and_buffers_to_ignore = [f"ngrams.{name}" for name, _ in self.ngrams.named_buffers()]
        self.base_model.register_forward_pre_hook(self._embed, with_kwargs=True)

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Put the ids before the new ones on the cache, for each beam."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        new_ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        if new_ids is not None and cache is not None:
            seen = input_ids.shape[1] - new_ids.shape[1]
            cache.previous_ids = input_ids[:, max(0, seen - LONGEST + 1) : seen]
        return inputs

    def _embed(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Replace the ids by embeddings for the architecture's model. Raises ValueError if there are no ids."""
        ids_BS = args[0] if args else kwargs.get("input_ids")
        if ids_BS is None:
            raise ValueError("n-gram embeddings need input_ids: inputs_embeds do not contain the bytes before")
        previous_BP = _previous_ids(kwargs.get("past_key_values"), ids_BS)
        ngrams_BTH = self.ngrams(
            *_context(previous_BP, ids_BS, kwargs.get("position_ids"), kwargs.get("attention_mask"))
        )
        embeddings_BSH = self.get_input_embeddings()(ids_BS) + ngrams_BTH[:, previous_BP.shape[1] :]
        if args:
            return (None, *args[1:]), {**kwargs, "inputs_embeds": embeddings_BSH}
        return (), {**kwargs, "input_ids": None, "inputs_embeds": embeddings_BSH}


def _previous_ids(cache: Any, ids_BS: Tensor) -> Tensor:
    """[B, P] the last ids that the cache contains.

    They are removed from the cache, because beams may change places before the next pass. Raises ValueError if they are
    missing.
    """
    previous_BP = None if cache is None else vars(cache).pop("previous_ids", None)
    if previous_BP is not None:
        return previous_BP.to(ids_BS.device)  # type: ignore[no-any-return]
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise ValueError(
            f"n-gram embeddings need the ids before these: set past_key_values.previous_ids to the last "
            f"{LONGEST - 1} ids of each row before every pass with a cache, as generate() does"
        )
    return ids_BS[:, :0]


def _context(
    previous_BP: Tensor, ids_BS: Tensor, position_ids_BS: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, P + S] the ids, whether each is a byte of the text, and whether each is the first of an example."""
    ids = torch.cat([previous_BP, ids_BS], 1)
    ordinary, starts = ids < BYTES, torch.zeros_like(ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        ordinary = ordinary & (mask[:, -ids.shape[1] :] > 0)
    if position_ids_BS is not None:
        # transformers separates packed examples in the same way
        starts[:, previous_BP.shape[1] + 1 :] = position_ids_BS.diff(dim=-1) != 1
    return ids, ordinary, starts
