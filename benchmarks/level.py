"""The level of new tokens: `python -m benchmarks.level [--tokenizers gpt2 qwen3 trained] [--methods fvt focus]`.

SmolLM2-135M gets each tokenizer, without training: bits per byte on three draws of Python source and of GSM8K's
questions, as the method leaves it and with the level that is measured on other texts: the sample that
`alm transfer` has, other Python source, and other questions of GSM8K. `--gsm8k` is its training part. The trained
tokenizer is the default job's.
"""

import argparse
import gzip
import json
import random
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from alm_pipeline.config import Method
from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.recipes import recipe
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.level.level import set_level
from alm_pipeline.transfer.level.texts import encoded_texts, sample_texts
from alm_pipeline.transfer.level.words import TOKENS
from alm_pipeline.transfer.swap import swap_tokenizer
from tests.real_tokenizers import tokenizer_folder

MODEL = "demo:smollm2-135m-instruct"
DRAWS = 3
Texts = dict[str, list[list[str]]]
"""by kind: the draws that are evaluated on, and last the texts that a level is measured on"""


def main() -> None:
    options = arguments()
    texts = {"Python": python_texts(options.per_draw), "GSM8K": gsm8k_texts(options.gsm8k, options.per_draw)}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.tokenizers:
            target = LoadedTokenizer(trained_tokenizer(options.root or scratch) if name == "trained" else folder(name))
            for method in options.methods:
                report(name, method, target, texts, options.dtype)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", nargs="+", default=["gpt2", "qwen3", "trained"])
    parser.add_argument("--methods", nargs="+", default=["fvt", "focus"], choices=get_args(Method))
    parser.add_argument("--gsm8k", default="gsm8k-train.jsonl.gz")
    parser.add_argument("--per-draw", type=int, default=4, help="texts of a kind in a draw")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--root", help="keeps the trained tokenizer for the next run")
    return parser.parse_args()


def folder(name: str) -> str:
    return str(tokenizer_folder(name))


def trained_tokenizer(root: str) -> str:
    pipeline = Pipeline(recipe("transfer"), root)
    pipeline.train_tokenizer()
    return pipeline.student_tokenizer.name


def python_texts(count: int) -> list[list[str]]:
    """Pieces of the standard library, from different files."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    files = [file for file in files if "-packages" not in str(file) and file.stat().st_size > 6000]
    random.Random(0).shuffle(files)
    return draws([file.read_text(encoding="utf-8", errors="ignore")[3000:3700] for file in files], count)


def gsm8k_texts(file: str, count: int) -> list[list[str]]:
    rows = gsm8k_rows(file)
    random.Random(0).shuffle(rows)
    return draws(rows, count)


def gsm8k_rows(file: str) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]


def draws(texts: Sequence[str], count: int) -> list[list[str]]:
    chosen = [list(texts[count * k : count * (k + 1)]) for k in range(DRAWS)]
    # more than are read, and never those that are evaluated on
    return [*chosen, list(texts[count * DRAWS : count * DRAWS + 20])]


def report(name: str, method: Method, target: LoadedTokenizer, texts: Texts, dtype: str) -> None:
    """Print a row for each way to the level."""
    sources: dict[str, Any] = {
        "none": None,
        "the sample": partial(sample_texts, target),
        **{kind: partial(cut, kinds[-1], target) for kind, kinds in texts.items()},
    }
    for source, read in sources.items():
        model, new_V = moved(target, method, dtype)
        found = set_level(model, new_V, read, "measured") if read else None
        bits = {kind: [measured(model, target, draw) for draw in kinds[:-1]] for kind, kinds in texts.items()}
        cells = (f"{mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})" for values in bits.values())
        nats = f"{found.nats:.2f}" if found else "0"
        print(f"| {name}, `{method}` | {source} | {nats} | {' | '.join(cells)} |", flush=True)


def moved(target: LoadedTokenizer, method: Method, dtype: str) -> tuple[PreTrainedModel, Any]:
    source = ModelReference(MODEL)
    model = source.load("float32", device="cpu")
    result = swap_tokenizer(model, source.tokenizer, target, Initialization(method))
    return model.to(getattr(torch, dtype)), result.new_V


def cut(texts: Sequence[str], target: LoadedTokenizer) -> TextTokens:
    """The first texts that have the tokens that a run measures the level on."""
    counts = [len(row) for row in encoded_texts(texts, target).ids]
    count = next((k for k in range(len(counts)) if sum(counts[:k]) >= TOKENS), len(counts))
    return encoded_texts(texts[:count], target)


def measured(model: PreTrainedModel, target: LoadedTokenizer, texts: Sequence[str]) -> float:
    tokens = encoded_texts(texts, target)
    return tokens.bits_per_byte(tokens.score(Scorer.of(model, target)))


if __name__ == "__main__":
    main()
