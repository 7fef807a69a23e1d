"""The suite's runs: students by the pipeline, and what each of them is worth on held-out texts.

Everything is a stage of a store: a student that is there is not trained again, and neither is it measured again, since
a measurement in another domain is itself a run, with the student as its model and without a step of training.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, assert_never

import pyarrow.parquet as pq

from alm_pipeline.config import (
    BYTES,
    AlmConfig,
    CorpusConfig,
    EvaluationConfig,
    FilesSource,
    ScoreConfig,
    StudentConfig,
    TrainConfig,
    TrainedTokenizer,
)
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import override, parse_overrides
from benchmarks.suite.bodies import Body, made_body
from benchmarks.suite.factors import PairName, Variant
from benchmarks.suite.texts import DOMAINS, Domain, Share, TextSet, write_texts
from storage.folders import FolderManifest

TRAINED_ON: Domain = "python"
"""the domain that students are distilled on; the others are what they may forget"""
_TEXT_BYTES = 512
_ROW_TOKENS = _TEXT_BYTES + 8
"""a text in bytes, and special tokens around it"""
_EMBEDDINGS = ("*embed_tokens*",)  # the heads are tied to them
_HELD_OUT = 0.08
_ELSEWHERE = 0.25
"""the share of the examples of other domains that students are measured on; a corpus can't be held out as a whole"""


class Size(NamedTuple):
    """How large the models are, and how long students are trained."""

    teacher: Body
    student: Body
    """a smaller model with a tokenizer of its own, for the pair `body`"""
    vocabulary: int
    """tokens of the new tokenizer of the pair `bpe`"""
    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    measured: int = 100
    """examples, about, that students are measured on in each other domain"""


SIZES: Mapping[str, Size] = {
    "tiny": Size(Body(32, 1, 600, 40), Body(32, 1, 500, 40), 400, 4, 1024, measured=60),
    "small": Size(Body(128, 4, 4096, 3000), Body(96, 3, 3000, 2000), 2048, 200, learning_rate=3e-3),
    "medium": Size(Body(224, 6, 8192, 8000, 6e-3), Body(160, 5, 6000, 6000, 8e-3), 4096, 400, learning_rate=2e-3),
    "large": Size(Body(384, 8, 16384, 40000, 3e-3, rows=16), Body(256, 6, 12000, 30000, 5e-3), 8192, 2000, 8192),
}
"""teachers of 0.03, 1.3, 5.5 and 20 million parameters; at the rate of `small` that of `medium` diverges"""


@dataclass(frozen=True)
class Suite:
    """The suite of one size on one set of texts, in a folder that keeps everything."""

    root: Path
    gsm8k: Path
    texts: TextSet
    size: Size

    @cached_property
    def files(self) -> Mapping[Share, Mapping[Domain, Path]]:
        """The texts, which are written first if they are not there."""
        return write_texts(self.root, self.gsm8k)

    @cached_property
    def teacher(self) -> str:
        return made_body(self.root, self.size.teacher, self.files["pretraining"])

    @cached_property
    def other_body(self) -> str:
        return made_body(self.root, self.size.student, self.files["pretraining"])

    def student_of(self, pair: PairName) -> StudentConfig:
        """Return the student of a pair: the teacher with another tokenizer, or another model with its own."""
        match pair:
            case "bpe":
                return StudentConfig(model=self.teacher, tokenizer=TrainedTokenizer(vocab_size=self.size.vocabulary))
            case "bytes":
                return StudentConfig(model=self.teacher, tokenizer=BYTES)
            case "body":
                return StudentConfig(model=self.other_body)
            case _:
                assert_never(pair)

    def corpus(self, domain: Domain) -> CorpusConfig:
        file = self.files[self.texts][domain]
        return CorpusConfig(
            name=f"{self.texts}-{domain}",
            source=FilesSource(urls=(str(file),)),
            id="id",
            max_bytes=_TEXT_BYTES,
            normalize=(),
            # a part of each text set, so that the teacher need not score what no student of this size reads
            max_examples=self._trained_examples if domain == TRAINED_ON else 4 * self.size.measured,
            held_out=_HELD_OUT if domain == TRAINED_ON else _ELSEWHERE,
        )

    @property
    def _trained_examples(self) -> int:
        # in no tokenizer of the suite has an example fewer than 60 tokens on average; some have to be held out
        return max(500, self.size.steps * self.size.batch_tokens // 60)

    def configuration(self, pair: PairName, variant: Variant, seed: int) -> AlmConfig:
        """Return a student's run. The same student has the same one, whichever experiment it is of."""
        size, rate = self.size, self.size.learning_rate * variant.rate
        embeddings = dict.fromkeys(_EMBEDDINGS, rate * variant.embedding_rate) if variant.embedding_rate != 1 else {}
        config = AlmConfig(
            corpus=self.corpus(TRAINED_ON),
            teacher=self.teacher,
            student=self.student_of(pair),
            score=ScoreConfig(dtype="float32"),
            train=TrainConfig(
                steps=size.steps,
                batch_tokens=size.batch_tokens,
                row_tokens=_ROW_TOKENS,
                learning_rate=rate,
                learning_rates=embeddings,
                warmup_steps=size.steps // 20,
                dtype="bfloat16",
                checkpoint_steps=max(100, size.steps // 4),
                seed=seed,
            ),
            evaluation=EvaluationConfig(samples=0, steps=max(1, size.steps // 8), max_examples=size.measured // 2),
        )
        return override(config, parse_overrides({"settings": dict(variant.settings)}))

    def trained(self, pair: PairName, variant: Variant, seed: int) -> "Student":
        """Return a student, trained first if it is not in the store."""
        pipeline = Pipeline(self.configuration(pair, variant, seed), str(self.root))
        return Student(self, pipeline, pipeline.run())

    def measure(self, domain: Domain, model: str) -> "Measures":
        """Return what a model is worth on held-out texts of a domain, measured first if that is not in the store."""
        config = AlmConfig(
            corpus=self.corpus(domain),
            teacher=self.teacher,
            student=StudentConfig(model=model),
            score=ScoreConfig(dtype="float32"),
            train=TrainConfig(steps=0, row_tokens=_ROW_TOKENS, batch_tokens=8 * _ROW_TOKENS),
            evaluation=EvaluationConfig(samples=0, max_examples=self.size.measured // 2),
        )
        return Measures.of(Pipeline(config, str(self.root)).run())


class Measures(NamedTuple):
    """Of a model on the held-out texts of a domain."""

    bits_per_byte: float
    kl: float
    """the exact binary KL to the teacher per word, in nats"""
    teacher_bits_per_byte: float

    @classmethod
    def of(cls, manifest: FolderManifest) -> "Measures":
        """Return those that a run has measured."""
        bits, kl = (manifest.results[f"held_out_{name}"] for name in ("bits_per_byte", "word_kl"))
        return cls(bits["student_after"], kl["student_after"], bits["teacher"])


class Student(NamedTuple):
    """A student that is in the store."""

    suite: Suite
    pipeline: Pipeline
    manifest: FolderManifest

    def measures(self) -> dict[Domain, Measures]:
        elsewhere: dict[Domain, Measures] = {
            domain: self.suite.measure(domain, str(self.pipeline.student.path))
            for domain in DOMAINS
            if domain != TRAINED_ON
        }
        return {TRAINED_ON: Measures.of(self.manifest), **elsewhere}

    def curve(self) -> Iterator[tuple[int, float]]:
        """Yield (student tokens read, held-out bits per byte) of each evaluation while it was trained."""
        per_step = self.pipeline.config.train.batch_tokens * self.pipeline.config.train.accumulation
        for row in pq.read_table(self.pipeline.student.path / "evaluations.parquet").to_pylist():
            yield row["step"] * per_step, row["bits_per_byte"]

    def tokens_to(self, retention: float) -> float | None:
        """Return the student tokens after which this share of what the swap cost was recovered; None if never.

        The cost is what the held-out bits per byte before training are above the teacher's; between two evaluations
        they are taken to fall in a straight line.
        """
        bits = self.manifest.results["held_out_bits_per_byte"]
        points = list(self.curve())
        goal = points[0][1] - retention * (bits["student_before"] - bits["teacher"])
        for (start, high), (end, low) in itertools.pairwise(points):
            if low <= goal:
                return end if high == low else start + (end - start) * (high - goal) / (high - low)
        return None
