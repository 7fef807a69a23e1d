"""Small models, trained from scratch, that answer what an objective is worth.

python -m benchmarks.suite forms [temperature …] --root FOLDER --gsm8k gsm8k-train.jsonl.gz [--set report]

A teacher with one tokenizer is trained on the source and documentation of the installed packages and on GSM8K. A
student, the same model with another BPE (`bpe`) or with bytes (`bytes`), or a smaller model with a tokenizer of its own
(`body`), is distilled on the source of packages that the teacher has never seen. It is measured on held-out texts of
that domain and of the two others: bits per byte, and the exact binary KL to the teacher per word. `tuning` and `report`
are disjoint sets of texts: settings are chosen on the one and reported on the other.

Every model, cache, student and measurement is kept in the folder; the same command goes on where it was stopped, and
makes only what is missing. It prints a table for each experiment and pair, and writes it with its picture and numbers
into `FOLDER/results`.
"""

import argparse
import logging
from pathlib import Path

import torch

from benchmarks.suite.factors import EXPERIMENTS, PAIRS
from benchmarks.suite.outcomes import run_experiment, save
from benchmarks.suite.runs import SIZES, Suite
from benchmarks.suite.tables import draw, markdown
from benchmarks.suite.texts import DOMAINS, TEXT_SETS


def main() -> None:
    options = arguments()
    logging.getLogger("alm_pipeline").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    suite = Suite(options.root, options.gsm8k, options.set, SIZES[options.size])
    for name in options.experiments:
        experiment = EXPERIMENTS[name]
        for pair in options.pairs or experiment.pairs:
            found = run_experiment(suite, experiment, pair, range(options.seeds))
            title = f"{experiment.question} {options.set} texts, pair {pair}, {options.size}, {options.seeds} seeds"
            results = options.root / "results" / f"{name}-{pair}-{options.set}-{options.size}"
            table = f"{markdown(found)}\nThe teacher's bits per byte: {teacher_bits(suite)}.\n"
            print(f"\n{title}\n\n{table}", flush=True)
            save(results.with_suffix(".json"), found)
            results.with_suffix(".md").write_text(f"{title}\n\n{table}", encoding="utf-8")
            draw(found, title, results.with_suffix(".png"))


def teacher_bits(suite: Suite) -> str:
    """Return the teacher's bits per byte by domain, on the texts that students are measured on."""
    measures = {domain: suite.measure(domain, suite.teacher) for domain in DOMAINS}
    return ", ".join(f"{domain} {of_domain.teacher_bits_per_byte:.4f}" for domain, of_domain in measures.items())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS), metavar="EXPERIMENT")
    parser.add_argument("--root", type=Path, required=True, help="the folder that keeps everything")
    parser.add_argument("--gsm8k", type=Path, required=True, help="the training part of GSM8K, gzipped JSON lines")
    parser.add_argument("--set", choices=TEXT_SETS, default="tuning", help="the set of texts")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, help="default: those of the experiment")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; small models gain little from more")
    return parser.parse_args()


if __name__ == "__main__":
    main()
