"""Several language models as one: an object that transformers' own `generate`, and whatever takes a model, can use.

Its logits are log-probabilities: the weighted mean of what the members say of the tokens that they share, over the
vocabulary of the first member, the lead; every other token is impossible. Members may lie on different devices and
have different precisions; their log-probabilities meet in float32.

Shapes: B rows, S new tokens, T tokens so far, K positions that are wanted, N positions, P positions of a piece, V ids
of the lead, L tokens that all members speak of.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from alm_pipeline.ensemble.cache import EnsembleCache
from alm_pipeline.ensemble.combination import combine
from alm_pipeline.ensemble.config import Mean
from alm_pipeline.ensemble.members import Member
from alm_pipeline.ensemble.vocabulary import Respeller

# positions × tokens of which log-probabilities exist at once, of each member
_PIECE_ELEMENTS = 2**25

logger = logging.getLogger("alm_pipeline")


class EnsembleModelConfig(PreTrainedConfig):
    """What callers ask a model's configuration: sizes and special ids."""

    model_type = "alm_ensemble"


class EnsembleModel(PreTrainedModel, GenerationMixin):
    """Members that speak with one voice; `alm_pipeline.ensemble.loading.load_ensemble` makes one."""

    config_class = EnsembleModelConfig
    shared_L: Tensor
    _supports_sdpa = True

    def __init__(
        self,
        members: Sequence[Member],
        mean: Mean,
        tokenizer: PreTrainedTokenizerFast,
        shared_L: Tensor,
        respeller: Respeller | None,
        config: EnsembleModelConfig,
    ) -> None:
        """`members` have a weight above 0; `tokenizer` is the lead's, and `shared_L` are its ids of shared tokens.

        `respeller` spells texts so that all members can read them (None: they can read any token).
        """
        super().__init__(config)
        total = sum(member.weight for member in members)
        self.members, self.mean, self.tokenizer, self._respeller = members, mean, tokenizer, respeller
        self._weights = [member.weight / total for member in members]
        self.models = nn.ModuleList({id(member.model): member.model for member in members}.values())
        self.register_buffer("shared_L", shared_L, persistent=False)
        self.eval()  # type: ignore[no-untyped-call]

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """None of its own: members keep theirs."""
        return {}

    @all_tied_weights_keys.setter
    def all_tied_weights_keys(self, _: Any) -> None: ...

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> BatchEncoding:
        """`input_ids` and `attention_mask` of texts, padded on the left, in tokens that all members can read.

        Raises UserError for a text that those can't spell.
        """
        rows = [self.ids(text, add_special_tokens=add_special_tokens) for text in texts]
        width, pad = max(map(len, rows), default=0), self.config.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchEncoding({"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)})

    def ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """One text's tokens, as `encode`."""
        return self.readable(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def readable(self, ids: Sequence[int]) -> list[int]:
        """What these tokens of the lead spell, in tokens that all members can read. Raises UserError as `encode`."""
        return list(ids) if self._respeller is None else self._respeller.respell(ids)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """`logits` [B, K, V]: log-probabilities after the last `logits_to_keep` tokens, after all S where it is 0.

        `attention_mask` [B, T] covers what is in the cache, too. Raises UserError for ids that members can't read.
        """
        cache = EnsembleCache(self.members) if use_cache and past_key_values is None else past_key_values
        ids_BT = input_ids if cache is None else cache.append(input_ids)
        mask_BT = torch.ones_like(ids_BT) if attention_mask is None else attention_mask
        if mask_BT.shape != ids_BT.shape:
            raise ValueError(f"attention_mask: is {tuple(mask_BT.shape)}, the tokens so far {tuple(ids_BT.shape)}")
        hidden = self.hidden(ids_BT, mask_BT, logits_to_keep or input_ids.shape[1], cache)
        shape_BK = hidden[0].shape[:2]
        pieces = self.pieces([states_BKH.flatten(0, 1) for states_BKH in hidden], input_ids.device)
        logits_NV = torch.cat([self._spread(logprobs_PL) for logprobs_PL in pieces])
        return CausalLMOutputWithPast(logits=logits_NV.unflatten(0, shape_BK), past_key_values=cache)

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor, wanted: int, cache: EnsembleCache | None = None) -> list[Tensor]:
        """[B, wanted, H] of each member, on its own device."""
        memories = cache.memories if cache is not None else [None] * len(self.members)
        return [
            member.hidden(ids_BT, mask_BT, wanted, memory)
            for member, memory in zip(self.members, memories, strict=True)
        ]

    def pieces(self, hidden: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """[P, L] log-probabilities of the shared tokens, for a few positions at a time out of [N, H] of each member."""
        positions = max(1, _PIECE_ELEMENTS // len(self.shared_L))
        for parts in zip(*(states_NH.split(positions) for states_NH in hidden), strict=True):
            logprobs = (
                (member.logprobs(states_PH).to(device), weight)
                for member, states_PH, weight in zip(self.members, parts, self._weights, strict=True)
            )
            yield combine(logprobs, self.mean)

    def _spread(self, logprobs_PL: Tensor) -> Tensor:
        """[P, V] with every token that is not shared impossible."""
        logits_PV = logprobs_PL.new_full((len(logprobs_PL), self.config.vocab_size), -torch.inf)
        logits_PV[:, self.shared_L.to(logprobs_PL.device)] = logprobs_PL
        return logits_PV

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`generate` makes no cache of layers: the first pass makes an EnsembleCache."""
        return False

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("an ensemble's members are saved, each for itself; write_config saves who they are")


def lead_generation_config(lead: PreTrainedModel, vocabulary: set[int]) -> Any:
    """The lead's own, as a copy; a warning where none of its end-of-text ids can be said."""
    generation_config = copy.deepcopy(lead.generation_config)
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    if not vocabulary.intersection(id_ for id_ in ends if id_ is not None):
        logger.warning(
            "the lead's end-of-text tokens %s are not among those that all members have: generation only stops at "
            "max_new_tokens",
            ends,
        )
    return generation_config
