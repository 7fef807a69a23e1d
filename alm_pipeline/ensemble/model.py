"""Several language models as one model, which transformers' `generate` and any other code for models can use.

Its logits are log-probabilities: the weighted mean of the members' distributions over the tokens that they share. They
are over the vocabulary of the first member, the lead; every token that is not shared is impossible. Members may be on
different devices and have different precisions; their log-probabilities are combined in float32.

Shapes: B rows, S new tokens, T tokens so far, K requested positions, N positions, P positions of a piece, V ids of the
lead, L tokens that all members have.
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
from alm_pipeline.ensemble.members import EnsembleMember
from alm_pipeline.ensemble.vocabulary import Respeller
from alm_pipeline.vocabulary.framing import plain_backend
from storage.errors import UserError

# log-probabilities (positions × tokens) of each member that exist at once
_PIECE_ELEMENTS = 2**25

logger = logging.getLogger("alm_pipeline")


class EnsembleModelConfig(PreTrainedConfig):
    """The values that callers read from a model's configuration: sizes and special ids."""

    model_type = "alm_ensemble"


class EnsembleModel(PreTrainedModel, GenerationMixin):
    """Members combined into one model; `alm_pipeline.ensemble.loading.load_ensemble` loads one."""

    config_class = EnsembleModelConfig
    shared_L: Tensor
    _supports_sdpa = True

    def __init__(
        self,
        members: Sequence[EnsembleMember],
        mean: Mean,
        tokenizer: PreTrainedTokenizerFast,
        shared_L: Tensor,
        respeller: Respeller | None,
        config: EnsembleModelConfig,
    ) -> None:
        """`members` have weights above 0; `tokenizer` is the lead's, and `shared_L` are its ids of shared tokens.

        `respeller` spells texts with tokens that all members can read (None: they can read any token).
        """
        super().__init__(config)
        total = sum(member.weight for member in members)
        self.members, self.mean, self.tokenizer, self._respeller = members, mean, tokenizer, respeller
        self._backend = plain_backend(tokenizer.backend_tokenizer)
        self._weights = [member.weight / total for member in members]
        self.models = nn.ModuleList({id(member.model): member.model for member in members}.values())
        self.register_buffer("shared_L", shared_L, persistent=False)
        self.eval()  # type: ignore[no-untyped-call]

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """Empty: members keep their own tied weights."""
        return {}

    @all_tied_weights_keys.setter
    def all_tied_weights_keys(self, _: Any) -> None: ...

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> BatchEncoding:
        """Return `input_ids` and `attention_mask` of texts, padded on the left, in tokens that all members can read.

        Raises UserError for a text that these tokens cannot spell.
        """
        rows = [self.ids(text, add_special_tokens=add_special_tokens) for text in texts]
        width, pad = max(map(len, rows), default=0), self.config.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchEncoding({"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)})

    def ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of one text, as `encode` does."""
        return self.readable(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def readable(self, ids: Sequence[int]) -> list[int]:
        """Spell the lead's tokens with tokens that all members can read. Raises UserError as `encode` does."""
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
        """Return `logits` [B, K, V]: log-probabilities after the last `logits_to_keep` tokens (0: after all S).

        `attention_mask` [B, T] also covers the cached tokens. Raises UserError for ids that members cannot read.
        """
        cache = EnsembleCache(self.members) if use_cache and past_key_values is None else past_key_values
        ids_BT = input_ids if cache is None else cache.append(input_ids)
        mask_BT = torch.ones_like(ids_BT) if attention_mask is None else attention_mask
        if mask_BT.shape != ids_BT.shape:
            raise ValueError(f"attention_mask has shape {tuple(mask_BT.shape)}, and the tokens {tuple(ids_BT.shape)}")
        hidden = self.hidden(ids_BT, mask_BT, logits_to_keep or input_ids.shape[1], cache)
        shape_BK = hidden[0].shape[:2]
        pieces = self.pieces([states_BKH.flatten(0, 1) for states_BKH in hidden], input_ids.device)
        logits_NV = torch.cat([self._spread(logprobs_PL) for logprobs_PL in pieces])
        return CausalLMOutputWithPast(logits=logits_NV.unflatten(0, shape_BK), past_key_values=cache)

    def hidden(
        self, ids_BT: Tensor, mask_BT: Tensor, positions: int, cache: EnsembleCache | None = None
    ) -> list[Tensor]:
        """Return the hidden states [B, positions, H] of each member, on its own device."""
        memories = cache.memories if cache is not None else [None] * len(self.members)
        return [
            member.hidden(ids_BT, mask_BT, positions, memory)
            for member, memory in zip(self.members, memories, strict=True)
        ]

    def pieces(self, hidden: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield log-probabilities [P, L] of the shared tokens, a few positions at a time.

        `hidden` has the states [N, H] of each member. Raises UserError if one is NaN.
        """
        positions = max(1, _PIECE_ELEMENTS // len(self.shared_L))
        for parts in zip(*(states_NH.split(positions) for states_NH in hidden), strict=True):
            logprobs = (
                (member.checked_logprobs(states_PH).to(device), weight)
                for member, states_PH, weight in zip(self.members, parts, self._weights, strict=True)
            )
            combined_PL = combine(logprobs, self.mean)
            if combined_PL.isnan().any():
                raise UserError("at some position no token is possible for all members: use mean: probabilities")
            yield combined_PL

    def _spread(self, logprobs_PL: Tensor) -> Tensor:
        """[P, V] the log-probabilities of all tokens: −∞ for those that are not shared."""
        logits_PV = logprobs_PL.new_full((len(logprobs_PL), self.config.vocab_size), -torch.inf)
        logits_PV[:, self.shared_L.to(logprobs_PL.device)] = logprobs_PL
        return logits_PV

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False, so that `generate` makes no cache of layers: the first pass makes an EnsembleCache."""
        return False

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError(
            "an ensemble has no weights of its own: save each member, and list them with write_config"
        )


def lead_generation_config(lead: PreTrainedModel, vocabulary: set[int]) -> Any:
    """Return a copy of the lead's configuration. Logs a warning if the ensemble cannot generate an end-of-text id."""
    generation_config = copy.deepcopy(lead.generation_config)
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    if not vocabulary.intersection(id_ for id_ in ends if id_ is not None):
        logger.warning(
            "the lead's end-of-text tokens %s are not shared by all members: generation stops only at max_new_tokens",
            ends,
        )
    return generation_config
