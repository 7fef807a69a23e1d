"""How many of a draft's tokens a model accepts in speculative decoding, by transformers' own assisted generation.

A draft is a small model with a large one's tokenizer. In each round it proposes a few tokens, and the large model, the
target, computes them all in one pass: it accepts those that it would have generated itself, up to the first that it
would not, and adds one of its own. So the text is the target's own, and with more accepted it takes fewer passes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from alm_pipeline.comparison.corpora import open_corpus, read_texts
from alm_pipeline.config import CorpusConfig
from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.ensemble.loading import local_name
from alm_pipeline.evaluation.bootstrap import PairedInterval, paired_intervals
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loading import generating_as_asked, require_device
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import track
from storage.errors import UserError
from storage.printed.counts import counts_in_words

_LEAST_TOKENS = 2
"""of a text, to make a prompt and have something to say after it"""


class Proposals(NamedTuple):
    """What came of a draft's proposals after one prompt, or after several."""

    proposed: int
    accepted: int
    passes: int
    """of the target; in each it also generates a token of its own"""


@dataclass(frozen=True)
class DraftAcceptance:
    """One draft's result."""

    draft: str
    proposals: Proposals
    rate: PairedInterval
    """accepted per proposed token; prompts are what is resampled for the interval"""

    @property
    def tokens_per_pass(self) -> float:
        """The tokens that the target gets from one of its passes; without a draft it is 1."""
        return 1 + self.proposals.accepted / self.proposals.passes

    def row(self) -> dict[str, Any]:
        """Return the result as plain values."""
        value, difference = self.rate.value, self.rate.difference
        return {
            "draft": self.draft,
            **self.proposals._asdict(),
            "acceptance": value.value,
            "low": value.low,
            "high": value.high,
            "tokens_per_pass": self.tokens_per_pass,
            "difference": difference.value if difference else None,
            "difference_low": difference.low if difference else None,
            "difference_high": difference.high if difference else None,
        }


class _Rounds(BaseStreamer):
    """Counts the rounds of an assisted generation, whose results transformers hands to a streamer one by one."""

    def __init__(self, end_ids: Sequence[int]) -> None:
        self.end_ids, self.total = set(end_ids), Proposals(0, 0, 0)
        self._is_prompt, self._proposed = True, 0

    def count_proposal(self, *_: Any) -> None:
        """A hook of the draft: each of its passes proposes a token."""
        self._proposed += 1

    def put(self, value: Tensor) -> None:
        tokens = value.flatten().tolist()
        proposed, self._proposed = self._proposed, 0
        # where a text ends, transformers does not tell whether its last token was proposed
        if not self._is_prompt and tokens[-1] not in self.end_ids:
            total = self.total
            self.total = Proposals(total.proposed + proposed, total.accepted + len(tokens) - 1, total.passes + 1)
        self._is_prompt = False

    def end(self) -> None:
        pass


@torch.inference_mode()
def proposals(
    target: PreTrainedModel, draft: PreTrainedModel, prompt: Sequence[int], *, ahead: int, max_tokens: int
) -> Proposals:
    """Return what comes of a draft's proposals while the target continues a prompt greedily.

    The draft proposes `ahead` tokens in each round, and fewer before the end of `max_tokens`. The round in which a text
    ends does not count.
    """
    ids = torch.tensor([list(prompt)], device=target.device)
    rounds = _Rounds(_end_ids(target))
    hook = draft.register_forward_hook(rounds.count_proposal)
    try:
        with quiet_transformers(), generating_as_asked(target), generating_as_asked(draft):
            settings: Any = draft.generation_config
            settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = ahead, "constant"
            settings.assistant_confidence_threshold = 0.0
            target.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=draft,
                max_new_tokens=max_tokens,
                pad_token_id=next(iter(_end_ids(target)), 0),
                streamer=rounds,
                do_sample=False,
            )
    finally:
        hook.remove()
    return rounds.total


def _end_ids(model: PreTrainedModel) -> list[int]:
    ids: Any = model.generation_config and model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def compare_drafts(
    target: str,
    drafts: Sequence[str],
    corpus: CorpusConfig,
    *,
    ahead: int = 5,
    prompt_tokens: int = 32,
    max_tokens: int = 64,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[list[DraftAcceptance], dict[str, int]]:
    """Return each draft's acceptance on beginnings of the corpus's texts, and the number of texts left out, by reason.

    Models are folders, stored students' URLs, hub names or `demo:NAME`. A prompt is the first `prompt_tokens` tokens of
    a text, or half of a shorter one. Raises UserError if a draft is named twice or has another tokenizer than the
    target, if a prompt with its new tokens is longer than a model's context, and if no text is left.
    """
    refuse_repeated(drafts, "draft")
    require_device(device)
    references = [ModelReference(local_name(name), trust_remote_code) for name in (target, *drafts)]
    tokenizers = [LoadedTokenizer(local_name(name)) for name in (target, *drafts)]
    for name, tokenizer in zip(drafts, tokenizers[1:], strict=True):
        _check_same_tokens(target, tokenizers[0], name, tokenizer)
    left_out = Counter[str]()
    prompts = _prompts(corpus, tokenizers[0], prompt_tokens, left_out)
    for name, reference in zip((target, *drafts), references, strict=True):
        _check_room(name, reference.context_length, max(map(len, prompts)), max_tokens)
    model, found = references[0].load(dtype, device=device), []
    with track("accept", len(prompts) * len(drafts), "prompts") as advance:
        for reference in references[1:]:
            draft, results = reference.load(dtype, device=device), list[Proposals]()
            for prompt in prompts:
                results.append(proposals(model, draft, prompt, ahead=ahead, max_tokens=max_tokens))
                advance(1)
            found.append(results)
    return _intervals(drafts, found), dict(left_out)


def _intervals(drafts: Sequence[str], found: Sequence[Sequence[Proposals]]) -> list[DraftAcceptance]:
    numbers = np.array(found, np.float64).reshape(len(drafts), -1, len(Proposals._fields))
    totals = [Proposals(*map(int, row)) for row in numbers.sum(axis=1)]
    if any(not total.proposed for total in totals):
        raise UserError("no token was proposed: every text ended at once, or --max-tokens is too small: use 8 or more")
    rates = paired_intervals(numbers[:, :, 1], numbers[:, :, 0])
    return [DraftAcceptance(*parts) for parts in zip(drafts, totals, rates, strict=True)]


def _check_same_tokens(target: str, tokenizer: LoadedTokenizer, draft: str, other: LoadedTokenizer) -> None:
    """Raise UserError if an id is not the same token to both."""
    ours, theirs = tokenizer.view.spelling, other.view.spelling
    if list(ours) == list(theirs):
        return
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((id_ for id_, (one, two) in pairs if one != two), min(len(ours), len(theirs)))
    raise UserError(
        f"{draft}: has another tokenizer than {target} (id {first} is another token), so it can't be its draft: move "
        f"it with `alm run draft --teacher {target} --student {draft}`, or without training with `alm transfer`"
    )


def _check_room(name: str, context: int | None, prompt: int, max_tokens: int) -> None:
    """Raise UserError if a prompt with its new tokens is longer than a model's context."""
    if context is not None and prompt + max_tokens > context:
        raise UserError(
            f"{name}: a prompt of {prompt:,} tokens and {max_tokens:,} new ones are more than its context of "
            f"{context:,}: lower --prompt-tokens or --max-tokens (a flow's parameters of these names)"
        )


def _prompts(
    corpus: CorpusConfig, tokenizer: LoadedTokenizer, prompt_tokens: int, left_out: Counter[str]
) -> list[list[int]]:
    read, source = open_corpus(corpus)
    prompts = []
    for text in read_texts(read, source, None, left_out):
        ids = [int(id_) for id_ in tokenizer.fast(text.text).input_ids]
        if len(ids) < _LEAST_TOKENS:
            left_out["too_short"] += 1
        else:
            prompts.append(ids[: min(prompt_tokens, len(ids) // 2)])
    if not prompts:
        raise UserError(f"{corpus.name}: contains no text to continue (left out: {counts_in_words(left_out)})")
    return prompts
