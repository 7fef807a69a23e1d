"""Makes a plan: what the store has is counted in its manifests, and the rest is estimated from a sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from alm_pipeline.config import TrainedTokenizer
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.pipeline import Pipeline, Side
from alm_pipeline.planning.changes import EarlierRuns
from alm_pipeline.planning.duration import Durations, Rates
from alm_pipeline.planning.plan import Amount, Plan, Stage, StagePlan, add_plans, total
from alm_pipeline.planning.sample import CorpusEstimate, estimate_corpus
from alm_pipeline.planning.stored import StoredStage, stored_stages
from alm_pipeline.planning.trial import Trial, stored_examples, student_tokenizer, try_stages
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.standard import single_threaded_calls
from storage.dataset import load_manifest
from storage.errors import UserError
from storage.printed.secrets import masked
from storage.schemas import Kind
from storage.urls import join_url, list_folders

SCORE_BYTES: Mapping[int, float] = {4: 2.2, 7: 2.9, 10: 3.9, 15: 5.0, 23: 6.6}
"""Stored bytes of a token's scores by `score.mantissa_bits`; between these they rise evenly."""
TOP_K_BYTES = 6.0
"""stored per token and likely next token: an id and a log-probability"""
ALIGNMENT_BYTES = 0.7
"""stored per token of the teacher's, where the student has another tokenizer"""
TOKENIZER_BYTES = 80.0
"""of a tokenizer's files, per token of its vocabulary"""
_STAND_IN = (
    "the student's tokenizer has yet to be trained: its tokens are estimated with the tokenizer that the model has now"
)
_UNFILTERED = "documents that deduplicate or decontaminate will leave out are counted in"
_SCORES_READ = 20
"""datasets of scores in the store that are looked at for how large scores are"""
_DOES: Mapping[str, str] = {"score": "scores", "train": "trains"}
_RATE_OPTIONS: Mapping[str, str] = {"score": "--score-rate", "train": "--train-rate"}
_UNITS: Mapping[Stage, str] = {"align": "tokens", "score": "tokens", "train": "tokens"}


def make_plan(pipeline: Pipeline, rates: Rates | None = None, *, with_student: bool = True) -> Plan:
    """Return what a run of the pipeline would do. Reads at most a few seconds of a corpus that is not there yet.

    Raises UserError as the stages do, for a corpus or model that can't be read.
    """
    rates = rates or Rates()
    if not pipeline.config.is_mixture:
        return _Planner(pipeline, rates, with_student).plan()
    plans = [_Planner(part, rates, with_student=False).plan() for part in pipeline.parts]
    training = _plan_training(pipeline, rates, plans) if with_student else None
    whole = add_plans(plans, [part.name for part in pipeline.parts], training)
    return whole.model_copy(update={"title": pipeline.config.title})


def _plan_training(pipeline: Pipeline, rates: Rates, sources: Sequence[Plan]) -> Plan:
    """Return the plan of a mixture's training alone."""
    is_open = any(stage.state != "complete" for plan in sources for stage in plan.stages)
    train, durations = pipeline.config.train, Durations(pipeline, rates, None, None)
    try:
        student = pipeline.student
    except UserError:  # it is named by a tokenizer that the run makes first
        student = None
    there = StoredStage(student)
    amount = Amount.known(train.steps * train.batch_tokens * train.accumulation)
    left = _left(amount, there, 0, None)
    seconds = Amount.known(0) if there.is_complete else durations.seconds("train", left)
    size = Amount.known(there.bytes) if there.is_complete and there.bytes is not None else durations.student_bytes
    stage = StagePlan(
        stage="train",
        state="complete" if there.is_complete else "partly" if there.is_begun else "missing",
        unit="tokens",
        amount=amount,
        left=left,
        stored_bytes=size,
        seconds=seconds,
        cost=rates.cost(seconds),
        reasons=() if there.is_complete or not is_open else ("follows from the sources",),
    )
    blank = dict.fromkeys(("examples", "held_out_examples", "text_bytes", "teacher_tokens", "student_tokens"))
    return Plan(
        title=pipeline.config.title,
        storage=masked(pipeline.root),
        **blank,
        cache_bytes_per_teacher_token=None,
        stages=(stage,),
        seconds=seconds,
        new_bytes=Amount.known(0) if there.is_complete else size,
        cost=rates.cost(seconds),
    )


@dataclass
class _Planner:
    pipeline: Pipeline
    rates: Rates
    with_student: bool

    def plan(self) -> Plan:
        stages = self._stages
        left = [stage for stage in stages.values() if stage.state != "complete"]
        cached: tuple[Stage, ...] = ("tokenize teacher", "tokenize student", "align", "score")
        seconds = total([stage.seconds for stage in left])
        teacher_tokens = self._tokens("teacher")
        return Plan(
            title=self.pipeline.config.title,
            storage=masked(self.pipeline.root),
            examples=self._corpus_amount("rows"),
            held_out_examples=self._corpus_amount("held_out_examples"),
            text_bytes=self._text_bytes,
            teacher_tokens=teacher_tokens,
            student_tokens=self._tokens("student"),
            cache_bytes_per_teacher_token=_ratio(
                total([stages[stage].stored_bytes for stage in cached]), teacher_tokens
            ),
            stages=tuple(stages.values()),
            seconds=seconds,
            new_bytes=total([_share(stage.stored_bytes, stage) for stage in left]),
            cost=self.rates.cost(seconds),
            notes=self._notes(left),
        )

    def _notes(self, left: list[StagePlan]) -> tuple[str, ...]:
        notes = [_STAND_IN] if self._trial and self._trial.has_stand_in else []
        notes += self._trial.one_sided if self._trial else ()
        if self._sample and self.pipeline.config.texts.is_filtered:
            notes.append(_UNFILTERED)
        if self._sample and self._sample.count is None:
            notes.append("nothing says how large the corpus is, and a sample did not reach its end")
        guessed = [stage.stage for stage in left if self._durations.is_probed(stage.stage)]
        if guessed:
            does, options = (" and ".join(names[stage] for stage in guessed) for names in (_DOES, _RATE_OPTIONS))
            sets = "sets" if len(guessed) == 1 else "set"
            notes.append(
                f"this machine has no record of how fast it {does} with such models, so the time follows from how fast "
                f"it multiplies matrices: --measure tries the models, {options} N {sets} tokens per second, and a run "
                "records its own speed"
            )
        return tuple(notes)

    # what is there

    @cached_property
    def _there(self) -> dict[Stage, StoredStage]:
        return stored_stages(self.pipeline, with_student=self.with_student)

    @cached_property
    def _stages(self) -> dict[Stage, StagePlan]:
        earlier = EarlierRuns(self.pipeline.root, self.pipeline.config)
        missing: list[Stage] = []
        plans: dict[Stage, StagePlan] = {}
        for stage, there in self._there.items():
            reasons = () if there.is_complete else earlier.reasons(stage, missing)
            plans[stage] = self._stage(stage, there, reasons)
            if not there.is_complete:
                missing.append(stage)
        return plans

    def _stage(self, stage: Stage, there: StoredStage, reasons: tuple[str, ...]) -> StagePlan:
        works_by_shards = stage not in ("train tokenizer", "pair biases", "train")
        shards = self._shards if works_by_shards else None
        exact = int(shards.value) if shards and shards.exact else None
        done = there.shards_done(exact) if works_by_shards else 0
        amount = self._amount(stage)
        left = _left(amount, there, done, shards)
        seconds = Amount.known(0) if there.is_complete else self._durations.seconds(stage, left)
        return StagePlan(
            stage=stage,
            state="complete" if there.is_complete else "partly" if done or there.is_begun else "missing",
            shards_done=done,
            shards=shards,
            unit="tokens" if stage in _UNITS else "bytes",
            amount=amount,
            left=left,
            stored_bytes=self._stored_bytes(stage, there),
            seconds=seconds,
            cost=self.rates.cost(seconds),
            reasons=reasons,
        )

    # amounts

    @cached_property
    def _sample(self) -> CorpusEstimate | None:
        if self._there["shard"].manifest:
            return None
        with single_threaded_calls():
            return estimate_corpus(self.pipeline.corpus, limit=self._token_limit())

    def _token_limit(self) -> TokenLimit | None:
        """Return what cuts the examples, with a stand-in for a tokenizer that has yet to be trained."""
        length = self.pipeline.source.context_length
        if length is None or not self.pipeline.cuts_by_tokens:
            return None
        return TokenLimit(length, ByteEncoder(student_tokenizer(self.pipeline)[1]))

    @cached_property
    def _trial(self) -> Trial | None:
        """The sample's tokens and alignments; None where all of these are complete."""
        stages: tuple[Stage, ...] = ("shard", "tokenize teacher", "tokenize student", "align")
        if all(self._there[stage].is_complete for stage in stages):
            return None
        if self._sample:
            return try_stages(self.pipeline, self._sample.examples)
        manifest = self._there["shard"].manifest
        assert manifest
        return try_stages(self.pipeline, stored_examples(self.pipeline.examples, len(manifest.shards)))

    @cached_property
    def _durations(self) -> Durations:
        return Durations(self.pipeline, self.rates, self._sample, self._trial)

    def _corpus_amount(self, name: str) -> Amount | None:
        if manifest := self._there["shard"].manifest:
            return Amount.known(manifest.rows if name == "rows" else manifest.counts[name])
        assert self._sample
        sampled = {"rows": self._sample.count, "held_out_examples": self._sample.held_out}
        return sampled.get(name, self._sample.text_bytes)

    @cached_property
    def _text_bytes(self) -> Amount | None:
        return self._corpus_amount("text_bytes")

    @cached_property
    def _shards(self) -> Amount | None:
        if manifest := self._there["shard"].manifest:
            return Amount.known(len(manifest.shards))
        size = self._text_bytes
        return size and Amount(value=max(1, math.ceil(size.value / self.pipeline.config.texts.shard_bytes)))

    def _tokens(self, side: Side) -> Amount | None:
        stage: Stage = "tokenize teacher" if side == "teacher" else "tokenize student"
        if (count := self._there[stage].count("tokens")) is not None:
            return Amount.known(count)
        return _times(self._text_bytes, self._trial.tokens[side] if self._trial else None)

    def _amount(self, stage: Stage) -> Amount | None:
        config = self.pipeline.config
        match stage:
            case "train tokenizer":
                setting = config.student.tokenizer
                return Amount.known(setting.train_bytes if isinstance(setting, TrainedTokenizer) else 0)
            case "shard" | "tokenize teacher" | "tokenize student" | "pair biases":
                return self._text_bytes
            case "align":
                return total([self._tokens("teacher"), self._tokens("student")])
            case "score":
                return self._tokens("teacher")
            case "train":
                return Amount.known(config.train.steps * config.train.batch_tokens * config.train.accumulation)

    # sizes

    def _stored_bytes(self, stage: Stage, there: StoredStage) -> Amount | None:
        if there.bytes is not None and there.is_complete:
            return Amount.known(there.bytes)
        trial, text = self._trial, self._text_bytes
        match stage:
            case "train tokenizer":
                setting = self.pipeline.config.student.tokenizer
                if isinstance(setting, TrainedTokenizer):
                    return Amount(value=setting.vocab_size * TOKENIZER_BYTES)
                tokenizer = self.pipeline.named_tokenizer or self.pipeline.source.tokenizer
                return Amount(value=tokenizer.file.stat().st_size)
            case "shard":
                return _times(text, trial.example_bytes if trial else None)
            case "tokenize teacher":
                return _times(text, trial.token_bytes["teacher"] if trial else None)
            case "tokenize student":
                return _times(text, trial.token_bytes["student"] if trial else None)
            case "align":
                if trial and trial.has_stand_in:  # the teacher's own tokens may have stood in: nothing to align
                    return _times(self._tokens("teacher"), ALIGNMENT_BYTES)
                return _times(text, trial.alignment_bytes if trial else None)
            case "pair biases":
                return _times(self._tokens("teacher"), 2.0)
            case "score":
                return _times(self._tokens("teacher"), self._score_bytes)
            case "train":
                return self._durations.student_bytes

    @cached_property
    def _score_bytes(self) -> float:
        """Return the stored bytes of a token's scores: as in this store's other datasets, or as documented."""
        config, root = self.pipeline.config.score, self.pipeline.root
        folder, stored, tokens = join_url(root, Kind.TEACHER_SCORES), 0, 0
        for name in list_folders(folder)[:_SCORES_READ]:
            try:
                manifest = load_manifest(join_url(folder, name))
            except UserError:
                continue
            if manifest and _scored_alike(manifest.identity.get("config", {}), config.mantissa_bits, config.top_k):
                stored, tokens = stored + manifest.bytes, tokens + manifest.counts["tokens"]
        return stored / tokens if tokens else _documented_score_bytes(config.mantissa_bits) + config.top_k * TOP_K_BYTES


def _scored_alike(stored: Mapping[str, object], mantissa_bits: int, top_k: int) -> bool:
    return stored.get("mantissa_bits") == mantissa_bits and stored.get("top_k", 0) == top_k


def _documented_score_bytes(bits: int) -> float:
    low = max(known for known in SCORE_BYTES if known <= bits)
    high = min(known for known in SCORE_BYTES if known >= bits)
    share = (bits - low) / (high - low) if high > low else 0.0
    return SCORE_BYTES[low] + share * (SCORE_BYTES[high] - SCORE_BYTES[low])


def _left(amount: Amount | None, there: StoredStage, done: int, shards: Amount | None) -> Amount | None:
    if there.is_complete:
        return Amount.known(0)
    if amount is None or not done or shards is None:
        return amount
    return amount.times(max(0.0, 1 - done / max(1.0, shards.value)))


def _share(amount: Amount | None, stage: StagePlan) -> Amount | None:
    """Return what a stage that is partly done still adds."""
    if amount is None or not stage.shards_done or stage.shards is None:
        return amount
    return amount.times(max(0.0, 1 - stage.shards_done / max(1.0, stage.shards.value)))


def _times(amount: Amount | None, factor: float | None) -> Amount | None:
    return None if amount is None or factor is None else amount.times(factor)


def _ratio(amount: Amount | None, by: Amount | None) -> Amount | None:
    if amount is None or by is None:
        return None
    return Amount(value=amount.value / max(1.0, by.value), exact=amount.exact and by.exact)
