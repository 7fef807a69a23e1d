"""One evaluation of a student on held-out examples: bits per byte, distance to the teacher's scores, samples.

It leaves no trace in a training: random states, modes and precisions are afterwards what they were. Everything is in
float32, whatever the training is in, so that the numbers are those of the student as it is saved.
"""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.models.files import length_in, quiet_transformers
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training.data.arrays import Examples
from alm_pipeline.training.data.examples import aligned_examples
from alm_pipeline.training.data.packing import all_groups, make_batch
from alm_pipeline.training.loop.evaluations import Evaluation, Sample
from alm_pipeline.training.model.terms import micro_batch_losses

Batch = Mapping[str, Tensor]
_PROMPT_TOKENS = 32
"""of a text at most, and at most half of it"""


class HeldOutEvaluator:
    """Held-out examples in memory, and a student's evaluation on them."""

    def __init__(
        self,
        held_out: HeldOut,
        config: AlmConfig,
        vocabulary: HeadVocabulary,
        tokenizer: LoadedTokenizer,
        ends: ChunkEnds | None = None,
    ) -> None:
        """`tokenizer` and `vocabulary` are the student's; `ends` is as in `read_examples`."""
        self.held_out, self.vocabulary, self.tokenizer = held_out, vocabulary, tokenizer.fast
        # the distance to the teacher is read off its scores: whatever the terms are, it is not needed in memory
        self.objective = config.objective.model_copy(update={"terms": {"alm": 1.0}})
        self.tokens = held_out.drawn_student
        self.batches = self._batches(config.train.batch_tokens, config.train.row_tokens, ends)
        self.prompts = _prompts(held_out, config.evaluation.samples)
        self.sample_tokens = config.evaluation.sample_tokens

    def _batches(self, batch_tokens: int, row_tokens: int, ends: ChunkEnds | None) -> list[Batch]:
        """Pack the examples that have a chunk to learn from."""
        examples = Examples.of(aligned_examples(self.held_out.drawn, self.objective, ends))
        groups = all_groups(np.diff(examples.token_offsets), batch_tokens, row_tokens)
        return [vars(make_batch(examples, group)) for group in groups]

    def __call__(self, model: PreTrainedModel, title: str | None = None) -> Evaluation:
        """`title` is what the progress is called; none is shown without."""
        with _without_trace(model):
            bits = self.tokens.bits_per_byte(Scorer(model, self.vocabulary), title)
            scores = {"bits_per_byte": bits, **self._distance(model), "examples": len(self.held_out)}
            return Evaluation(scores, [self._sample(model, prompt) for prompt in self.prompts])

    def over_all(self, model: PreTrainedModel, scores: Mapping[str, float], title: str) -> float:
        """The bits per byte over all that is held out, where `scores` are the model's over what was drawn of it."""
        if self.held_out.is_all:
            return scores["bits_per_byte"]
        with _without_trace(model):
            return self.held_out.student.bits_per_byte(Scorer(model, self.vocabulary), title)

    def _distance(self, model: PreTrainedModel) -> dict[str, float]:
        """The ALM loss and the divergence, means over all chunks; nothing where there are none."""
        if not self.batches:
            return {}
        counts = LossCounts.of(*self.batches).on_all_devices(lambda own: own.to(model.device))
        sums = {"alm": 0.0, "kl": 0.0}
        for batch in self.batches:
            placed = {name: value.to(model.device) for name, value in batch.items()}
            losses = micro_batch_losses(model, placed, self.vocabulary, self.objective, counts)
            sums["alm"] += float(losses.terms["alm"])
            sums["kl"] += float(losses.watched["kl"])
        return {**sums, "chunks": int(counts.chunks)}

    def _sample(self, model: PreTrainedModel, prompt: list[int]) -> Sample:
        context = length_in(model.config.get_text_config().to_dict())
        room = context - len(prompt) if context else self.sample_tokens
        ids = torch.tensor([prompt], device=model.device)
        # without settings of the model's own: one that samples would complain about a temperature that has no use
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}
        with quiet_transformers():
            found = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(self.sample_tokens, room),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                **greedy,
            )
        return Sample(*(_spelled(self.tokenizer, part) for part in (prompt, found[0, len(prompt) :].tolist())))


@contextlib.contextmanager
def _without_trace(model: PreTrainedModel) -> Iterator[None]:
    was_training, device = model.training, model.device
    # accelerate's autocast, put around the model's own: the head's probe and samples would be in bfloat16
    prepared = vars(model).pop("forward", None)
    devices = [device] if device.type == "cuda" else []
    # compiled layers would be compiled anew for other lengths and caches, until the compiler gives up on them
    eager = torch.compiler.set_stance("force_eager")
    with eager, torch.random.fork_rng(devices), matmul_precision("highest"), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)
            if prepared:
                vars(model)["forward"] = prepared


def _spelled(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _prompts(held_out: HeldOut, count: int) -> list[list[int]]:
    """The student's tokens of the beginnings of the first examples: of a conversation all before the first answer."""
    if not count:
        return []
    ids = held_out.column("student_tokens", "token_ids")
    tokens, assistant = (held_out.column("alignments", column) for column in ("student_tokens", "assistant"))
    beginnings = (own[: _prompt_length(*example)] for own, *example in zip(ids, tokens, assistant, strict=True))
    return [found.tolist() for found in beginnings if len(found)][:count]


def _prompt_length(tokens: npt.NDArray[np.generic], assistant: npt.NDArray[np.generic]) -> int:
    """`tokens` and `assistant` are of the example's chunks; the latter is empty for a plain text."""
    if assistant.any():
        return int(tokens[: int(assistant.argmax())].sum())
    return int(min(_PROMPT_TOKENS, tokens.sum() // 2))
