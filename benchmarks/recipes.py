"""What the objective makes of the default job: recipe `transfer`, seed by seed, on its own texts or on others.

python -m benchmarks.recipes alm alm+sft sft --root FOLDER --gsm8k FILE [--set report] [--tokenizer FOLDER]

The texts of `report` are the recipe's own, Python's standard library; those of `tuning` are the source of some
installed packages. Settings are chosen on the one and reported on the other. Each student is measured on held-out texts
of its corpus, and on problems of GSM8K: bits per byte, and the exact binary KL to the teacher per word. The first
variant is the reference. Everything is kept in the folder, and the same command goes on where it was stopped.
"""

import argparse
import logging
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, StudentConfig, TrainConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import override, parse_overrides
from alm_pipeline.recipes.recipes import python_source, recipe
from benchmarks.suite.outcomes import Outcomes, save
from benchmarks.suite.tables import draw, markdown
from storage.folders import FolderManifest

TextSet = Literal["tuning", "report"]
PACKAGES = ("datasets", "fsspec", "httpx", "jinja2", "networkx", "pydantic", "rich", "sqlalchemy")
"""whose source are the texts that settings are chosen on"""
_BOTH_TERMS = {"objective.terms": {"alm": 1.0, "sft": 1.0}, "objective.balance": "temperature"}
_ALM = {"objective.terms": {"alm": 1.0}, "objective.balance": "fixed"}


def _rates(body: float, embeddings: float) -> dict[str, Any]:
    return {"train.learning_rate": body, "train.learning_rates": {"*embed_tokens*": embeddings}}


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "alm,end": {**_ALM, "objective.debias": "end", "student.level": "none"},
    "alm": {**_ALM, "objective.debias": "both"},
    "alm+sft": _BOTH_TERMS,
    "alm+sft,end": {**_BOTH_TERMS, "objective.debias": "end"},
    "alm+sft,level": {**_BOTH_TERMS, "student.level": "none"},
    "alm+sft,3:1": {**_BOTH_TERMS, "objective.terms": {"alm": 3.0, "sft": 1.0}},
    "alm+sft,1:3": {**_BOTH_TERMS, "objective.terms": {"alm": 1.0, "sft": 3.0}},
    "alm+sft,temperature1": {**_BOTH_TERMS, "objective.temperature": 1.0},
    "alm+sft,space": {**_BOTH_TERMS, "objective.chunking": "space"},
    "alm+sft,anchor": {**_BOTH_TERMS, "objective.chunking": "anchor"},
    "alm+sft+bpm": {**_BOTH_TERMS, "objective.terms": {"alm": 1.0, "sft": 1.0, "bpm": 1.0}, "score.top_k": 16},
    "alm+sft,rate1e-4": {**_BOTH_TERMS, "train.learning_rate": 1e-4},
    "alm+sft,rate4e-4": {**_BOTH_TERMS, "train.learning_rate": 4e-4},
    "alm+sft,5e-5,1e-3": {**_BOTH_TERMS, **_rates(5e-5, 1e-3)},
    "alm+sft,5e-5,4e-4": {**_BOTH_TERMS, **_rates(5e-5, 4e-4)},
    "alm+sft,1e-4,4e-4": {**_BOTH_TERMS, **_rates(1e-4, 4e-4)},
    "alm+sft,2e-5,4e-4": {**_BOTH_TERMS, **_rates(2e-5, 4e-4)},
    "sft": {"objective.terms": {"sft": 1.0}, "objective.balance": "fixed"},
}
"""settings beside those of the recipe, by the variant's name"""


def corpus(texts: TextSet) -> CorpusConfig:
    """Return the recipe's corpus, or one like it of other texts."""
    if texts == "report":
        return python_source()
    folder = sysconfig.get_paths()["purelib"]
    source = FilesSource(
        urls=tuple(f"{folder}/{package}/**/*.py" for package in PACKAGES), exclude=("*/tests/*",), format="text"
    )
    return python_source().model_copy(update={"name": "packages", "source": source, "sample": 0.0186})


def problems(gsm8k: Path) -> CorpusConfig:
    """Return the other domain: 120 problems of GSM8K, every other one held out."""
    return CorpusConfig(
        name="gsm8k",
        source=FilesSource(urls=(str(gsm8k),)),
        text="Question: {question}\nAnswer: {answer}",
        max_bytes=1024,
        max_examples=120,
        held_out=0.5,
    )


def trained(variant: str, seed: int, options: argparse.Namespace) -> tuple[Pipeline, FolderManifest]:
    """Return a student's run and its manifest, trained first if it is not in the folder."""
    values = {"train.seed": seed, **VARIANTS[variant]}
    if options.tokenizer:
        values["student.tokenizer"] = options.tokenizer
    config = override(recipe("transfer"), parse_overrides({"settings": values}))
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus(options.set)}), str(options.root))
    return pipeline, pipeline.run()


def measured_elsewhere(run: Pipeline, gsm8k: Path, root: Path) -> FolderManifest:
    """Return the manifest of a run without steps, on the other domain, whose student is the one of `run`."""
    config = AlmConfig(
        corpus=problems(gsm8k),
        teacher=run.config.teacher,
        student=StudentConfig(model=str(run.student.path)),
        objective=run.config.objective,
        train=TrainConfig(steps=0, batch_tokens=1024, row_tokens=512, dtype="bfloat16"),
    )
    return Pipeline(config, str(root)).run()


def outcomes(variant: str, seed: int, options: argparse.Namespace) -> Outcomes:
    """Return what a student is worth, by the column of the table."""
    run, manifest = trained(variant, seed, options)
    elsewhere = measured_elsewhere(run, options.gsm8k, options.root)
    values: dict[str, float | None] = {}
    for domain, of_domain in {"python": manifest, "maths": elsewhere}.items():
        values[f"{domain}, bits per byte"] = of_domain.results["held_out_bits_per_byte"]["student_after"]
        values[f"{domain}, KL"] = of_domain.results["held_out_word_kl"]["student_after"]
    print(options.set, variant, seed, values, flush=True)
    return values


def main() -> None:
    options = arguments()
    logging.getLogger("alm_pipeline").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    found: dict[str, list[Outcomes]] = {variant: [] for variant in options.variants}
    for seed in options.seeds:
        for variant in options.variants:
            found[variant].append(outcomes(variant, seed, options))
    tokenizer = Path(options.tokenizer).name if options.tokenizer else "trained"
    title = f"Recipe `transfer`, tokenizer {tokenizer}, {options.set} texts, seeds {', '.join(map(str, options.seeds))}"
    results = options.root / "results" / f"recipes-{options.set}-{tokenizer}"
    save(results.with_suffix(".json"), found)
    draw(found, title, results.with_suffix(".png"))
    print(f"\n{title}\n\n{markdown(found)}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="+", choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--root", type=Path, required=True, help="the folder that keeps everything")
    parser.add_argument("--gsm8k", type=Path, required=True, help="the training part of GSM8K, gzipped JSON lines")
    parser.add_argument("--set", choices=get_args(TextSet), default="tuning", help="the set of texts")
    parser.add_argument("--tokenizer", help="a folder with the student's tokenizer; without: the one that is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
