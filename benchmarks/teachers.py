"""Is a student of two teachers by domain nearer to both than a student of one teacher for all?

    python -m benchmarks.teachers --root FOLDER [--seeds 3] [--set FIELD=VALUE …]

Two domains of tiny texts: `ring`, walks along a ring of words with slips beside it (as in `benchmarks.on_policy`), and
`sums`, additions written out. Three teachers of one size and one tokenizer are trained from scratch: a specialist for
each domain, and one for both, with as many steps as the two specialists have together. The student, of another family
and with another tokenizer, has read the words of both domains in no order. It is distilled on a mixture of few texts of
both, once from the two specialists (each source has its own) and once from the one teacher.

Both students, and the student before, are measured on the same held-out texts: bits per byte, and KL per word from the
source's specialist, whoever taught them. Differences are paired by text and by seed, as in `alm compare-methods`; the
texts are the same for all seeds. Ten minutes on one core.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import (
    AlmConfig,
    EvaluationConfig,
    FilesSource,
    ObjectiveConfig,
    ScoreConfig,
    SourceConfig,
    StudentConfig,
    TrainConfig,
)
from alm_pipeline.evaluation.held_out import DocumentSums, HeldOut
from alm_pipeline.methods.statistics import Estimate, MixedDomains, measures
from alm_pipeline.methods.units import BITS, KL, unit_table
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.scoring.scorer import Scorer
from benchmarks.on_policy import SLIPS, shuffled, walk
from flows.terminal.configurations import parse_settings
from tests import tiny
from tests.writers import rows_of_texts, teach

DOMAINS = ("ring", "sums")
FOR_TEACHERS, FOR_STUDENTS = 3000, 400
"""texts of each domain"""
STEPS = 1500
"""of a specialist; the teacher of both domains has twice as many"""
ONE, TWO, BEFORE = "one teacher", "two teachers", "before training"
TEACHERS = {ONE: "the one teacher itself", TWO: "the two teachers themselves"}


def sums(chance: random.Random, length: int) -> str:
    """Return additions of two numbers below 20, with their results."""
    pairs = [(chance.randrange(20), chance.randrange(20)) for _ in range(length)]
    return "; ".join(f"{left} + {right} = {left + right}" for left, right in pairs) + "."


def texts_of(domain: str, count: int, seed: int) -> list[str]:
    """Return texts of about the same length in both domains."""
    chance = random.Random(f"{domain} {seed}")
    if domain == "ring":
        return [walk(chance, chance.randint(8, 16), SLIPS) for _ in range(count)]
    return [sums(chance, chance.randint(4, 8)) for _ in range(count)]


def scrambled(count: int) -> list[str]:
    """Return texts that know the words of both domains and no order."""
    chance = random.Random(2)
    parts = ["+", "=", *map(str, range(39))]
    return [
        shuffled(chance, 12) if chance.random() < 0.5 else "; ".join(chance.choices(parts, k=12)) + "."
        for _ in range(count)
    ]


def trained(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    steps: int,
    seed: int,
) -> str:
    """Return the folder of a model that was trained on texts; it is made if it is not there."""
    if not folder.exists():
        torch.manual_seed(seed)
        teach(model, rows_of_texts(tokenizer, texts), steps=steps, seed=seed, rate=5e-3)
        tiny.save(folder, model, tokenizer)
    return str(folder)


def teachers(folder: Path, seed: int) -> dict[str, str]:
    """Return the teachers by domain, and the one for both as `both`."""
    texts = {domain: texts_of(domain, FOR_TEACHERS, 0) for domain in DOMAINS}
    everything = [text for of_domain in texts.values() for text in of_domain]
    tokenizer = tiny.sentencepiece_tokenizer(500, everything)

    def teacher(name: str, read: Sequence[str], steps: int) -> str:
        return trained(folder / f"{name}-{seed}", tiny.tiny_gemma(len(tokenizer)), tokenizer, read, steps, seed)

    specialists = {domain: teacher(domain, of_domain, STEPS) for domain, of_domain in texts.items()}
    return {**specialists, "both": teacher("both", everything, len(DOMAINS) * STEPS)}


def student(folder: Path, seed: int) -> str:
    texts = scrambled(1500)
    tokenizer = tiny.byte_level_tokenizer(360, texts)
    return trained(folder / f"student-{seed}", tiny.tiny_llama(len(tokenizer)), tokenizer, texts, 300, seed)


def source(folder: Path, domain: str, teacher: str | None) -> SourceConfig:
    file = folder / f"{domain}.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts_of(domain, FOR_STUDENTS, 1)))
    return SourceConfig(
        name=domain, source=FilesSource(urls=(str(file),)), held_out=0.25, max_bytes=400, teacher=teacher
    )


def configs(folder: Path, seed: int) -> dict[str, AlmConfig]:
    """Return the runs of the two students, whose own texts and tokens are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    by_domain, model = teachers(folder, seed), student(folder, seed)
    train = TrainConfig(steps=200, batch_tokens=2048, row_tokens=256, learning_rate=3e-3, seed=seed)
    chosen: dict[str, Mapping[str, str | None]] = {
        ONE: dict.fromkeys(DOMAINS),
        TWO: {domain: by_domain[domain] for domain in DOMAINS},
    }
    return {
        name: AlmConfig(
            corpus=tuple(source(folder, domain, teacher) for domain, teacher in of_domain.items()),
            teacher=by_domain["both"],
            student=StudentConfig(model=model),
            score=ScoreConfig(dtype="float32", mantissa_bits=15),
            objective=ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0}, balance="temperature", temperature=5),
            train=train,
            evaluation=EvaluationConfig(samples=0),
            name=f"{name}, seed {seed}",
        )
        for name, of_domain in chosen.items()
    }


def units(domain: str, held_out: HeldOut, found: DocumentSums) -> pa.Table:
    """Return a model's measures of a domain, by text."""
    columns = {BITS: (found.bits, found.bytes)}
    if found.kl is not None and found.words is not None:
        columns[KL] = (found.kl, found.words)
    names = held_out.document_names
    return pa.concat_tables(
        unit_table(domain, measure, dict(zip(names, zip(*pair, strict=True), strict=True)))
        for measure, pair in columns.items()
    )


def measured(runs: Mapping[str, Pipeline], trained_runs: Mapping[str, str]) -> dict[str, pa.Table]:
    """Return each model's measures; all KLs are from the specialists, whose scores the run of two teachers has."""
    models = {**trained_runs, BEFORE: runs[TWO].source.name}
    held_out = {part.name: HeldOut.read(part.caches) for part in runs[TWO].parts}
    settings = ScoreConfig(dtype="float32")
    tables = {}
    for name, folder in models.items():
        scorer = Scorer.load(ModelReference(folder), settings)
        tables[name] = pa.concat_tables(
            units(domain, of_domain, of_domain.student_sums(scorer, f"{name}: {domain}"))
            for domain, of_domain in held_out.items()
        )
    for name, run in runs.items():  # the teachers themselves, by their own tokens
        tables[TEACHERS[name]] = pa.concat_tables(
            units(part.name, found, found.teacher_sums) for part in run.parts for found in [HeldOut.read(part.caches)]
        )
    return tables


def run(root: Path, seed: int, settings: list[str]) -> dict[str, pa.Table]:
    """Train the students of a seed and return the measures of all models."""
    overrides = Overrides(settings=parse_settings(settings))
    chosen = {name: override(config, overrides) for name, config in configs(root / "models", seed).items()}
    runs = {name: Pipeline(config, str(root / "store")) for name, config in chosen.items()}
    for of_run in runs.values():
        of_run.run()
    return measured(runs, {name: str(of_run.student.fetch()) for name, of_run in runs.items()})


def show(by_seed: Sequence[Mapping[str, pa.Table]]) -> None:
    """Print a table of means over seeds, each with its difference from the student of one teacher."""
    tables = {name: [of_seed[name] for of_seed in by_seed] for name in by_seed[0]}
    found = measures(tables, ONE, MixedDomains("both", dict.fromkeys(DOMAINS, 0.5)))
    print("| | " + " | ".join(f"{measure.domain}: {measure.name}" for measure in found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for name in (*TEACHERS, BEFORE, *TEACHERS.values()):
        cells = [_cell(measure.values.get(name), measure.differences.get(name)) for measure in found]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"seeds: {len(by_seed)}; texts: {', '.join(f'{m.domain} {m.units}' for m in found if m.name == BITS)}")


def _cell(value: Estimate | None, difference: Estimate | None) -> str:
    if value is None:
        return ""
    by = f" ({difference.value:+.4f} ± {difference.half:.4f})" if difference else ""
    return f"{value.value:.4f}{by}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", metavar="FIELD=VALUE", default=[])
    arguments = parser.parse_args()
    by_seed = []
    for seed in range(arguments.seeds):
        by_seed.append(run(arguments.root, seed, arguments.settings))
        show(by_seed)


if __name__ == "__main__":
    main()
