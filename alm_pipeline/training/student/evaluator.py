"""The evaluation of a student on held-out examples: bits per byte, distance to the teacher's scores, samples.

It does not affect training: random states, modes and precisions are restored afterward. Everything is computed in
float32, whatever dtype the training uses, so the results are those of the saved student.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.evaluation.words import Words
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loading import generating_as_asked, matmul_precision
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.objective.prefix_arrays import PrefixTable
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from alm_pipeline.training.data.arrays import ExampleArrays, read_targets
from alm_pipeline.training.data.examples import aligned_examples
from alm_pipeline.training.data.packing import make_batch, make_target_batch, plan_batches
from alm_pipeline.training.loop.evaluations import OVER_ALL, Evaluation, Sample
from alm_pipeline.training.model.terms import micro_batch_losses
from alm_pipeline.training.student.prompts import sample_prompts
from storage.dataset import Dataset


class HeldOutEvaluator:
    """Held-out examples in memory, on which students are evaluated."""

    def __init__(
        self,
        held_out: HeldOut,
        config: AlmConfig,
        vocabulary: HeadVocabulary,
        tokenizer: LoadedTokenizer,
        ends: ChunkEnds | None = None,
        prefixes: PrefixTable | None = None,
        examples: Dataset | None = None,
    ) -> None:
        """`tokenizer` and `vocabulary` are the student's; `ends` and `prefixes` are those of `read_examples`.

        `examples` has the conversations that samples continue.
        """
        self.held_out, self.vocabulary, self.tokenizer = held_out, vocabulary, tokenizer.fast
        # the distance to the teacher comes from its scores, so no term needs the teacher in memory
        compared = {term: 1.0 for term in ("alm", "bpm") if term == "alm" or term in config.objective.terms}
        self.objective = config.objective.model_copy(update={"terms": compared})
        self.tokens, self.words = held_out.drawn_student, held_out.drawn_words
        self.batches = self._batches(config.train.batch_tokens, config.train.row_tokens, ends, prefixes)
        self._prompts: list[list[int]] | None = None
        self._read_prompts = partial(sample_prompts, held_out, config.evaluation.samples, tokenizer, examples)
        self.sample_tokens = config.evaluation.sample_tokens

    def _batches(
        self, batch_tokens: int, row_tokens: int, ends: ChunkEnds | None, prefixes: PrefixTable | None
    ) -> list[dict[str, Tensor]]:
        """Pack the examples that have a chunk to learn from."""
        rows = aligned_examples(self.held_out.drawn, self.objective, ends, prefixes=prefixes)
        examples, targets = ExampleArrays.of(rows), read_targets(rows) if self.objective.needs_top else None
        plans = plan_batches(np.diff(examples.token_offsets), batch_tokens, row_tokens)
        return [
            vars(make_batch(examples, plan)) | (vars(make_target_batch(examples, targets, plan)) if targets else {})
            for plan in plans
        ]

    def __call__(self, model: PreTrainedModel, title: str | None = None) -> Evaluation:
        """Evaluate the student. Progress is shown under `title`, or not at all without one."""
        with _isolated_evaluation(model):
            scores = self.tokens.score(Scorer(model, self.vocabulary), title)
            bits = {"bits_per_byte": self.tokens.bits_per_byte(scores), **_word_kl(self.words, scores)}
            metrics = {**bits, **self._distance(model), "examples": len(self.held_out)}
            return Evaluation(metrics, [self._sample(model, prompt) for prompt in self.prompts(model)])

    def prompts(self, model: PreTrainedModel) -> list[list[int]]:
        """Return the tokens that samples continue, which are the same for every student."""
        if self._prompts is None:
            self._prompts = self._read_prompts(context_length(model.config))
        return self._prompts

    def over_all(self, model: PreTrainedModel, drawn: Evaluation, title: str) -> Evaluation:
        """Return OVER_ALL over all held-out examples. `drawn` is the model's evaluation on the drawn ones."""
        if self.held_out.is_all:
            return Evaluation({name: drawn.metrics[name] for name in OVER_ALL if name in drawn.metrics}, [])
        with _isolated_evaluation(model):
            scores = self.held_out.student.score(Scorer(model, self.vocabulary), title)
        bits = {"bits_per_byte": self.held_out.student.bits_per_byte(scores)}
        return Evaluation({**bits, **_word_kl(self.held_out.words, scores)}, [])

    def _distance(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the losses and the divergence, as means over all chunks or targets; {} if there are no chunks."""
        if not self.batches:
            return {}
        counts = LossCounts.of(*self.batches).on_all_devices(lambda values: values.to(model.device))
        sums = dict.fromkeys([*self.objective.terms, "kl"], 0.0)
        for batch in self.batches:
            on_device = {name: value.to(model.device) for name, value in batch.items()}
            losses = micro_batch_losses(model, on_device, self.vocabulary, self.objective, counts)
            for term in self.objective.terms:
                sums[term] += float(losses.terms[term])
            sums["kl"] += float(losses.watched["kl"])
        return {**sums, "chunks": int(counts.chunks)}

    def _sample(self, model: PreTrainedModel, prompt: list[int]) -> Sample:
        context = context_length(model.config)
        room = context - len(prompt) if context else self.sample_tokens
        ids = torch.tensor([prompt], device=model.device)
        with quiet_transformers(), generating_as_asked(model):
            output = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(self.sample_tokens, room),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                do_sample=False,
            )
        continuation = output[0, len(prompt) :].tolist()
        return Sample(*(_decode(self.tokenizer, ids) for ids in (prompt, continuation)))


def _word_kl(words: Words, scores: Sequence[TokenScores]) -> dict[str, float]:
    """Return the mean KL per word; {} if there is none, or no boundary token."""
    distance = words.distance(scores, np.zeros(len(scores), np.int64))
    return {"word_kl": distance.kl} if distance else {}


@contextlib.contextmanager
def _isolated_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate the model inside the context, in float32, and restore everything afterward."""
    was_training, device = model.training, model.device
    # accelerate wraps `forward` in autocast: the head's probe and the samples would be in bfloat16
    wrapped_forward = vars(model).pop("forward", None)
    devices = [device] if device.type == "cuda" else []
    # compiled layers would be recompiled for other lengths and caches, until the compiler gives up
    eager = torch.compiler.set_stance("force_eager")
    with eager, torch.random.fork_rng(devices), matmul_precision("highest"), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)
            if wrapped_forward:
                vars(model)["forward"] = wrapped_forward


def _decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
