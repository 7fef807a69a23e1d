"""Where does each objective lead a student that could be perfect? `python -m benchmarks.toy [--steps 1200]`

Texts are words drawn independently, the teacher is an exact token model of them under one tokenizer, and the student is
a table: one logit for each token that may follow in a word, and for its end, under another tokenizer. It could have the
texts' distribution exactly. It is trained on the pipeline's own batches by its own losses, from nothing and from the
truth, and measured by KL(text ‖ student) in nats per word.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alm_pipeline.config import Chunking, ObjectiveConfig, Term, TrainConfig
from alm_pipeline.objective.batch_loss import LossCounts, ScoredBatch
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.batch_stream import BatchStream
from tests.exact_store import IMPOSSIBLE, exact_pipeline, examples_of_batch
from tests.exact_words import TokenModel, Tokens, Words, drawn_words, trained_tokenizer

END = -1
"""in place of a token: the word ends"""
WORDS_PER_TEXT = 512


class TableStudent:
    """A student with one logit for every token, or the end of the word, that may follow the tokens of a word."""

    def __init__(self, model: TokenModel) -> None:
        self.model = model
        self.edges = {edge: number for number, edge in enumerate(_edges(model))}
        sources = {state: number for number, state in enumerate(dict.fromkeys(state for state, _ in self.edges))}
        self.source_E = torch.tensor([sources[state] for state, _ in self.edges])
        self.sources = len(sources)
        self._edges_of_texts = dict[tuple[int, ...], Tensor]()

    def truth(self) -> Tensor:
        """[edges] the logits of the texts' own distribution."""
        return torch.tensor([math.log(self.model.probability(*edge)) for edge in self.edges])

    def logprobs(self, logits_E: Tensor) -> Tensor:
        """[edges] normalized over those of the same source."""
        most = logits_E.new_full((self.sources,), -math.inf).scatter_reduce(0, self.source_E, logits_E, "amax")
        sums = logits_E.new_zeros(self.sources).index_add(0, self.source_E, (logits_E - most[self.source_E]).exp())
        return logits_E - (most + sums.log())[self.source_E]

    def kl(self, logits_E: Tensor) -> float:
        """Return KL(text ‖ student) in nats per word."""
        logprobs, words = self.logprobs(logits_E.double()), self.model.words
        edges = torch.tensor([edge for tokens in self.model.tokens for edge in self._edges_of_word(tokens)])
        word = torch.tensor([k for k, tokens in enumerate(self.model.tokens) for _ in range(len(tokens) + 1)])
        of_words = logprobs.new_zeros(len(self.model.tokens)).index_add(0, word, logprobs[edges])
        probabilities = torch.from_numpy(words.probabilities)
        return float((probabilities * (probabilities.log() - of_words)).sum())

    def _edges_of_word(self, tokens: Tokens) -> Iterator[int]:
        for length, token in enumerate((*tokens, END)):
            yield self.edges[tokens[:length], token]

    def scored(self, batch: Mapping[str, Tensor], objective: ObjectiveConfig, logits_E: Tensor) -> ScoredBatch:
        """Return a batch with the student's two numbers per token."""
        token_N, end_before_N, end_after_N = self.positions(batch)
        # edge −1 is none: a token inside a word ends none, and where no word ends, no boundary follows
        logprobs = self.logprobs(logits_E)
        numbers = torch.cat([logprobs, logprobs.new_zeros(1)])
        ends = torch.cat([logprobs, logprobs.new_full((1,), IMPOSSIBLE)])
        tokens_N = numbers[token_N] + numbers[end_before_N]
        return ScoredBatch.of(tokens_N.roll(-1), ends[end_after_N], batch, objective, LossCounts.of(batch))

    def positions(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """[N] the edge of each token, of the end of the word before it if it begins one, and of an end after it."""
        edges = torch.full((3, batch["token_ids_BS"].numel()), -1)
        for at, ids in examples_of_batch(batch):
            key = tuple(ids)
            if key not in self._edges_of_texts:
                self._edges_of_texts[key] = self._edges_of_text(ids)
            edges[:, at : at + len(ids)] = self._edges_of_texts[key]
        token_N, before_N, after_N = edges
        return token_N, before_N, after_N

    def _edges_of_text(self, ids: list[int]) -> Tensor:
        """[3, tokens] as `positions`."""
        states = self.model.walk(ids)
        ends = [self.edges.get((state, END), -1) for state in states]
        token = [self.edges[state[:-1], state[-1]] for state in states]
        before = [end if len(state) == 1 else -1 for end, state in zip([-1, *ends], states, strict=False)]
        return torch.tensor([token, before, ends])


def _edges(model: TokenModel) -> Iterator[tuple[Tokens, int]]:
    found = dict[tuple[Tokens, int], None]()
    for tokens in model.tokens:
        for length, token in enumerate((*tokens, END)):
            found[tokens[:length], token] = None
    return iter(found)


def prepared(root: Path, words: Words, sizes: tuple[int, int], texts: int) -> tuple[Pipeline, TokenModel]:
    """Return a pipeline with the exact teacher's scores, and the student's exact model."""
    teacher, student = (TokenModel(words, trained_tokenizer(words, size)) for size in sizes)
    random = np.random.default_rng(2)
    drawn = [words.draw(WORDS_PER_TEXT, random) for _ in range(texts)]
    return exact_pipeline(root, teacher, student, drawn), student


def train(
    pipeline: Pipeline, student: TableStudent, objective: ObjectiveConfig, logits_E: Tensor, steps: int
) -> Tensor:
    """Return the student's logits after this number of steps, each of one text."""
    pipeline = Pipeline(pipeline.config.model_copy(update={"objective": objective}), pipeline.root)
    row = 4 * WORDS_PER_TEXT
    stream = BatchStream(
        pipeline.caches,
        objective,
        TrainConfig(batch_tokens=row, row_tokens=row),
        ends=pipeline.distillation.chunk_ends,
    )
    logits_E = logits_E.clone().requires_grad_()
    # in float32, gradients of nothing but rounding are far below this ε
    optimizer = torch.optim.Adam([logits_E], lr=0.05, eps=1e-6)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for batch in itertools.islice(stream, steps):
        scored = student.scored(batch, objective, logits_E)
        losses = {"alm": scored.alm, "sft": scored.sft}
        loss = torch.stack([losses[term]() for term in objective.terms]).sum() * objective.temperature
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logits_E.detach()


def objectives() -> Iterator[tuple[str, ObjectiveConfig]]:
    """Yield what is compared, by the table's names of it."""
    chunkings: tuple[Chunking, ...] = ("boundary", "space")
    for chunking, debias in itertools.product(chunkings, ("none", "end", "both")):
        yield f"alm {chunking:9} {debias}", _objective("alm", chunking=chunking, debias=debias)
    yield "sft", _objective("sft")


def _objective(term: Term, **settings: object) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"terms": {term: 1.0}, "temperature": 5.0, **settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--words", type=int, default=1000)
    parser.add_argument("--vocabularies", type=int, nargs=2, default=(800, 340), metavar=("TEACHER", "STUDENT"))
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.root) as scratch:
        teacher, student = options.vocabularies
        words = drawn_words(options.words)
        pipeline, model = prepared(Path(scratch), words, (teacher, student), options.steps)
        table = TableStudent(model)
        starts = {"from nothing": torch.zeros(len(table.edges)), "from the truth": table.truth()}
        print("KL(text ‖ student), nats per word: " + ", ".join(starts))
        for name, objective in objectives():
            values = [table.kl(train(pipeline, table, objective, start, options.steps)) for start in starts.values()]
            print(f"{name:22}" + "".join(f"{value:10.5f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
