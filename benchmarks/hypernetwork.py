"""A hypernetwork of SmolLM2-135M: `python -m benchmarks.hypernetwork train|measure|students [--seed 0] [--steps 300]`.

`train` trains it on GSM8K's questions (`--gsm8k` is its training part) and Python's standard library, and chooses the
step on held-out texts, with a BPE tokenizer trained on them and Mistral NeMo's. `measure` prints bits per byte with
GPT-2's, Qwen 3's and Llama 3's tokenizers and the default job's BPE of 16,384 tokens, on texts that neither training
nor choice has seen, beside FVT and FOCUS, each as it is and with its level set; `floor` is FVT without the probability
of new tokens. `students` trains students of 48 ALM steps from FVT, FOCUS and the network. Runs resume.
"""

import argparse
import json
import math
import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from transformers import PreTrainedModel

from alm_pipeline.config import AlmConfig, Method
from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.hypernetwork.settings import HypernetConfig, parse_hypernet_config
from alm_pipeline.hypernetwork.stage import HypernetPipeline
from alm_pipeline.models.output_head import hidden_states, output_head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.runtime.progress import logger
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.level.level import set_level
from alm_pipeline.transfer.level.texts import encoded_texts, sample_texts
from alm_pipeline.transfer.swap import swap_tokenizer
from benchmarks.level import MODEL, folder, gsm8k_rows, measured, trained_tokenizer

TARGETS = ("gpt2", "qwen3", "llama3", "trained")
MEASURED = 8
"""texts of a kind that are measured"""
TEXT_BYTES = 700
CORPUS_BYTES = 4_000_000
"""of each kind"""


@dataclass(frozen=True)
class Way:
    """A way to make embeddings."""

    method: Method
    level: bool = False

    def __str__(self) -> str:
        return self.method + (", level" if self.level else "")


WAYS = tuple(Way(method, level) for method in ("fvt", "focus", "hypernetwork") for level in (False, True))


def main() -> None:
    logger.setLevel("INFO")
    options = arguments()
    torch.set_num_threads(1)
    pipeline = HypernetPipeline(configuration(options), options.root)
    match options.part:
        case "train":
            print(json.dumps(pipeline.run().results, indent=1))
        case "measure":
            measure(pipeline, options)
        case "students":
            students(pipeline, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["train", "measure", "students"])
    parser.add_argument("--root", default="alm-hypernetwork", help="keeps what is finished for the next run")
    parser.add_argument("--gsm8k", default="gsm8k-train.jsonl.gz")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--terms", default='{"sft": 1}')
    parser.add_argument("--ways", nargs="+", help="of `measure`, by number")
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> HypernetConfig:
    return parse_hypernet_config(
        {
            "corpus": {
                "name": "maths-and-python",
                "source": {"kind": "files", "urls": [corpus_file(options)]},
                "max_bytes": 480,
                "held_out": 0.02,
            },
            "model": MODEL,
            "objective": {"terms": json.loads(options.terms), "balance": "temperature"},
            "sampler": {"min_tokens": 3000, "max_tokens": 16_384},
            "train": {
                "steps": options.steps,
                "texts": options.texts,
                "learning_rate": options.rate,
                "seed": options.seed,
                "dtype": "bfloat16",
                "checkpoint_steps": 25,
            },
            "evaluation": {
                "tokenizers": [folder("mistral_nemo")],
                "trained": {"vocab_size": 8192},
                "steps": 50,
                "max_examples": 16,
            },
        }
    )


def texts_of_kinds(options: argparse.Namespace) -> dict[str, list[str]]:
    """All texts by kind; the first `MEASURED` are never in the corpus."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    files = [file for file in files if "-packages" not in str(file) and file.stat().st_size > 6000]
    random.Random(7).shuffle(files)
    python = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    questions = gsm8k_rows(options.gsm8k)
    random.Random(7).shuffle(questions)
    return {
        "GSM8K": questions,
        "Python": [text[3000 : 3000 + TEXT_BYTES] for text in python[:MEASURED]] + python[MEASURED:],
    }


def corpus_file(options: argparse.Namespace) -> str:
    file = Path(options.root) / "corpus.jsonl"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [text for texts in texts_of_kinds(options).values() for text in beginning(texts[MEASURED:])]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return str(file)


def beginning(texts: Sequence[str]) -> list[str]:
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return list(texts[: int(np.searchsorted(sizes, CORPUS_BYTES))])


def measure(pipeline: HypernetPipeline, options: argparse.Namespace) -> None:
    """Print a row per tokenizer and kind of text."""
    texts = {kind: found[:MEASURED] for kind, found in texts_of_kinds(options).items()}
    ways = [WAYS[int(number)] for number in options.ways] if options.ways else WAYS
    own = ModelReference(MODEL)
    model = own.load("bfloat16", device="cpu")
    of_own = {kind: measured(model, own.tokenizer, found) for kind, found in texts.items()}
    print(f"| own tokenizer | {', '.join(f'{kind} {bits:.3f}' for kind, bits in of_own.items())} |")
    print(f"| tokenizer, texts | {' | '.join(map(str, ways))} | floor |", flush=True)
    for name in TARGETS:
        target = LoadedTokenizer(trained_tokenizer(options.root) if name == "trained" else folder(name))
        cells: dict[str, list[float]] = {kind: [] for kind in texts}
        for way in ways:
            moved, new_V = moved_model(pipeline, target, way)
            for kind, found in texts.items():
                cells[kind].append(measured(moved, target, found))
                if way == Way("fvt"):
                    floor = floor_of(moved, target, new_V, encoded_texts(found, target))
                    print(f"floor {name} {kind} {floor:.3f}")
        for kind, bits in cells.items():
            print(f"| {name}, {kind} | {' | '.join(f'{value:.3f}' for value in bits)} |", flush=True)


def moved_model(
    pipeline: HypernetPipeline, target: LoadedTokenizer, way: Way
) -> tuple[PreTrainedModel, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    source = ModelReference(MODEL)
    model = source.load("float32", device="cpu")
    network = Hypernetwork.load(str(pipeline.hypernetwork.fetch())) if way.method == "hypernetwork" else None
    result = swap_tokenizer(model, source.tokenizer, target, Initialization(way.method, hypernetwork=network))
    model = model.to(torch.bfloat16)  # type: ignore[arg-type]  # torch.nn.Module.to takes a dtype
    if way.level:
        set_level(model, result.new_V, partial(sample_texts, target), "measured")
    return model, result.new_V


@torch.no_grad()
def floor_of(
    model: PreTrainedModel,
    target: LoadedTokenizer,
    new_V: np.ndarray[tuple[int], np.dtype[np.bool_]],
    texts: TextTokens,
) -> float:
    """Bits per byte of copied tokens, had the new ones no probability; what no embedding of new tokens can mend."""
    head = output_head(model, torch.float32, len(new_V))
    new, nats, size = torch.from_numpy(new_V), 0.0, 0
    for ids in texts.ids:
        ids_T = torch.from_numpy(ids.astype(np.int64))
        states_TH = hidden_states(model, ids_T[None])[0].float()
        logprobs_TV = head.logits(states_TH[:-1]).masked_fill(new, -torch.inf).log_softmax(-1)
        found = logprobs_TV.gather(-1, ids_T[1:, None]).squeeze(-1)
        copied = ~new[ids_T[1:]]
        nats -= float(found[copied].sum())
        size += int(target.view.lengths[ids_T[1:][copied].numpy()].sum())
    return nats / math.log(2) / size


def students(pipeline: HypernetPipeline, options: argparse.Namespace) -> None:
    """Print bits per byte of students of 48 ALM steps with GPT-2's tokenizer, from each method."""
    texts = {kind: found[:MEASURED] for kind, found in texts_of_kinds(options).items()}
    for method in ("fvt", "focus", "hypernetwork"):
        student = {"model": MODEL, "tokenizer": folder("gpt2"), "initialization": method}
        if method == "hypernetwork":
            student["hypernetwork"] = str(pipeline.hypernetwork.fetch())
        config = AlmConfig.model_validate(
            {
                "corpus": {**pipeline.config.corpus.model_dump(mode="json"), "sample": 0.02, "held_out": 0.05},
                "teacher": MODEL,
                "student": student,
                "objective": {"terms": {"alm": 1.0}, "balance": "temperature"},
                "train": {
                    "steps": 48,
                    "batch_tokens": 512,
                    "row_tokens": 512,
                    "learning_rate": 1e-4,
                    "warmup_steps": 5,
                    "dtype": "bfloat16",
                    "checkpoint_steps": 24,
                    "seed": options.seed,
                },
                "evaluation": {"samples": 0, "max_examples": 16, "steps": 48},
            }
        )
        run = Pipeline(config, options.root)
        run.run()
        trained = ModelReference(str(run.student.fetch()))
        model = trained.load("bfloat16", device="cpu")
        bits = {kind: measured(model, trained.tokenizer, found) for kind, found in texts.items()}
        row = " | ".join(f"{value:.3f}" for value in bits.values())
        print(f"| {method} | {row} | {mean(bits.values()):.3f} |", flush=True)


if __name__ == "__main__":
    main()
