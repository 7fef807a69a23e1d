"""Is a student nearer to its teacher, on what it writes itself, after on-policy rounds than after as many other steps?

    python -m benchmarks.on_policy tiny --root FOLDER [--seeds 3]
    python -m benchmarks.on_policy maths --root FOLDER [--seeds 1] [--set rounds.count=4 …]

The control trains the same student on the corpus in the same rounds: as many steps, with the same restarts of the
optimizer. `tiny` is a pair that makes exposure bias visible. The teacher walks along a ring of words, and from words
beside the ring it goes back to it; the corpus never leaves the ring nor takes a wrong step, so an off-policy student
never learns how to go on from its own mistakes, and the first one leads to others. `maths` is SmolLM2-135M taught by
Gemma 3 270M on generated problems: half an hour on two idle cores, for a background.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from alm_pipeline.config import (
    AlmConfig,
    Corpus,
    CorpusConfig,
    EvaluationConfig,
    FilesSource,
    ObjectiveConfig,
    PromptsConfig,
    RoundsConfig,
    SamplingConfig,
    ScoreConfig,
    StudentConfig,
    TrainConfig,
)
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.recipes.recipes import maths
from alm_pipeline.rollouts.prompts import PromptChoice
from alm_pipeline.rounds.on_policy import OnPolicy
from alm_pipeline.rounds.report import RoundsReport
from flows.terminal.configurations import parse_settings
from storage.folders import StoredFolder
from tests import tiny
from tests.writers import teach

RING, BESIDE = 24, 24
"""words on the ring, and beside it"""
SLIPS = 0.15
"""of the teacher's own words lead beside the ring"""


class Control(OnPolicy):
    """The same rounds, each trained on the run's own corpus; students write on held-out prompts to be measured."""

    def _choice(self, round_: int, part: int) -> PromptChoice:
        return super()._choice(round_, part)._replace(train=0)

    def _corpus(self, round_: int) -> Corpus:
        return self.config.corpus

    @cached_property
    def folder(self) -> StoredFolder:
        own = OnPolicy(self.config, self.root).folder
        return replace(own, identity={**own.identity, "control": True})


def words() -> tuple[list[str], list[str]]:
    """Return the words on the ring and those beside it."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    names = ["".join(chance.sample(syllables, 2)) for _ in range(4 * (RING + BESIDE))]
    distinct = list(dict.fromkeys(names))
    return distinct[:RING], distinct[RING : RING + BESIDE]


def walk(chance: random.Random, length: int, slips: float) -> str:
    """Return a text of the teacher's: along the ring, with this share of slips, and back after a word beside it."""
    ring, beside = words()
    at, out, text = chance.randrange(RING), -1, list[str]()
    for _ in range(length):
        if out >= 0:
            text.append(beside[out])
            at = (out * 5 + 3) % RING  # each word beside the ring leads back to a place of its own
            out = -1
            continue
        text.append(ring[at])
        at = (at + 1) % RING
        if chance.random() < slips:
            out = chance.randrange(BESIDE)
    return " ".join(text) + "."


def shuffled(chance: random.Random, length: int) -> str:
    """Return a text that knows the words and no order: what the student has read before."""
    return " ".join(chance.choices([*words()[0], *words()[1]], k=length)) + "."


def tiny_pair(folder: Path, seed: int) -> tuple[str, str]:
    """Return the names of the teacher and the student, which are made if they are not there."""
    names = [folder / f"teacher-{seed}", folder / f"student-{seed}"]
    chance = random.Random(seed)
    texts = [walk(chance, chance.randint(6, 24), SLIPS) for _ in range(1500)]
    mixed = [shuffled(chance, chance.randint(6, 24)) for _ in range(1500)]
    made: Sequence[tuple[Any, Any, list[str], int]] = (
        (tiny.sentencepiece_tokenizer(500, texts), tiny.tiny_gemma, texts, 1500),
        (tiny.byte_level_tokenizer(360, mixed), tiny.tiny_llama, mixed, 300),
    )
    for name, (tokenizer, make, read, steps) in zip(names, made, strict=True):
        if not name.exists():
            model: PreTrainedModel = make(len(tokenizer))
            torch.manual_seed(seed)
            rows = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in read]
            teach(model, rows, steps=steps, seed=seed, rate=5e-3)
            tiny.save(name, model, tokenizer)
    return str(names[0]), str(names[1])


def tiny_config(folder: Path, seed: int) -> AlmConfig:
    """Return rounds on the tiny pair: the corpus has no slip, so nothing in it comes from beside the ring."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher, student = tiny_pair(folder, seed)
    chance, file = random.Random(1000 + seed), folder / f"ring-{seed}.jsonl"
    texts = [walk(chance, chance.randint(16, 24), 0.0) for _ in range(600)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train = TrainConfig(steps=60, batch_tokens=2048, row_tokens=256, learning_rate=3e-3, seed=seed)
    corpus = CorpusConfig(name="ring", source=FilesSource(urls=(str(file),)), held_out=0.25, max_bytes=400)
    return AlmConfig(
        corpus=corpus,
        teacher=teacher,
        student=StudentConfig(model=student),
        score=ScoreConfig(dtype="float32", mantissa_bits=15),
        objective=ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0}, balance="temperature", temperature=5),
        train=train,
        evaluation=EvaluationConfig(samples=0),
        rounds=RoundsConfig(
            count=4,
            per_round=400,
            held_out=120,
            prompts=PromptsConfig(text_bytes=16),
            sampling=SamplingConfig(max_tokens=64, seed=seed, at_once=64),
            mix=0.5,
            steps=60,
            learning_rate=1e-3,
        ),
    )


def maths_config(seed: int) -> AlmConfig:
    """Return rounds of the recipe `maths`, for two cores."""
    config = maths()
    rounds = RoundsConfig(
        count=3,
        per_round=96,
        held_out=24,
        prompts=PromptsConfig(text_bytes=200, per_shard=24),
        sampling=SamplingConfig(max_tokens=160, seed=seed, at_once=12),
        steps=16,
    )
    train = config.train.model_copy(update={"seed": seed})
    source = config.texts.model_copy(update={"held_out": 0.2})
    return config.model_copy(update={"corpus": source, "rounds": rounds, "train": train})


def compare(config: AlmConfig, root: Path) -> dict[str, pa.Table]:
    """Run the rounds and their control, and return the units of the student before and of both after."""
    runs = {"on-policy": OnPolicy(config, str(root)), "off-policy": Control(config, str(root))}
    for run in runs.values():
        run.run()
    assert config.rounds
    last = config.rounds.count
    before = runs["on-policy"].measure(0, runs["on-policy"].folder)
    return {"before": before, **{name: run.measure(last, run.folder) for name, run in runs.items()}}


def right_steps(run: OnPolicy, student: int) -> float:
    """Return the share of words after which a student wrote one that the teacher's walk allows."""
    ring, beside = words()
    after = {word: {ring[(place + 1) % RING], *beside} for place, word in enumerate(ring)}
    after |= {word: {ring[(place * 5 + 3) % RING]} for place, word in enumerate(beside)}
    texts = [row["text"].strip(".").split() for dataset in run.rollouts(student + 1) for row in _rows(dataset)]
    steps = [following in after.get(word, ()) for text in texts for word, following in pairwise(text)]
    return sum(steps) / len(steps)


def _rows(dataset: Any) -> list[Mapping[str, Any]]:
    return [
        row for shard in range(len(dataset.complete_manifest().shards)) for row in dataset.read_shard(shard).to_pylist()
    ]


def show(tables: Mapping[str, pa.Table], title: str) -> None:
    """Print each measure before, after the rounds and after as many steps off policy, and their paired difference."""
    print(f"\n{title}")
    names = list(tables)
    for row in RoundsReport.of(list(tables.values())).measures:
        interval = f"[{row.value.low:.4f}, {row.value.high:.4f}]" if row.value.low is not None else ""
        print(f"  {row.measure:26} {names[row.student]:11} {row.value.value:9.4f} {interval}")
    print("  on-policy less off-policy, by prompt:")
    for row in RoundsReport.of([tables["off-policy"], tables["on-policy"]]).measures:
        if row.difference and row.difference.low is not None:
            value, low, high = row.difference.value, row.difference.low, row.difference.high
            print(f"  {row.measure:26} {value:+9.4f} [{low:+.4f}, {high:+.4f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=["tiny", "maths"])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", metavar="FIELD=VALUE", default=[])
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        config = tiny_config(arguments.root / "pair", seed) if arguments.pair == "tiny" else maths_config(seed)
        config = override(config, Overrides(settings=parse_settings(arguments.settings)))
        root = arguments.root / "store"
        show(compare(config, root), f"seed {seed}")
        if arguments.pair == "tiny":
            assert config.rounds
            last, runs = config.rounds.count, (OnPolicy(config, str(root)), Control(config, str(root)))
            found = zip(
                ("before", "on-policy", "off-policy"), ((runs[0], 0), (runs[0], last), (runs[1], last)), strict=True
            )
            for name, (run, student) in found:
                print(f"  {name}: right steps from word to word: {right_steps(run, student):.3f}")


if __name__ == "__main__":
    main()
