"""Scoring over HTTP against the server's own speed: `python -m benchmarks.served --command .vllm-env/bin/vllm …`.

One vLLM server with the plugin, and the same rows of tokens in turn: processed as bare prompts, without any
log-probability (the head is computed for a row's last token only); with the prompt's log-probabilities as vLLM gives
them to anyone, whose replies are thrown away; and scored by this project, replies parsed, checked and put together. All
with the same client and as many requests at a time. Then, from one reply: the time that JSON takes with the fast parser
and with Python's own, and the rest of reading a reply.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import orjson

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.served.client import Answer, Client
from alm_pipeline.scoring.served.engines import HttpEngine
from alm_pipeline.scoring.served.server import started_server
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.served_scorer import ServedScorer
from alm_pipeline.scoring.windows import Ids


def main() -> None:
    options = arguments()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    teacher, config = ModelReference(options.model), configured(options)
    rows = drawn_rows(teacher, options.rows, options.tokens)
    vocabulary, total = ServedVocabulary.of(teacher), sum(map(len, rows))
    with started_server(teacher, config, vocabulary) as server, Client([server.url], config.served) as client:
        config = config.model_copy(update={"served": config.served.model_copy(update={"urls": (server.url,)})})
        engine = HttpEngine.vllm(client, vocabulary, config.top_k)
        scorer = ServedScorer(engine, teacher, config, vocabulary)
        print(f"{options.model}, {options.dtype}: {len(rows)} rows, {total:,} tokens, {engine.facts[0].engine}")
        runs: dict[str, Callable[[], object]] = {
            "bare prompts": lambda: ask(client, bare_bodies(engine, rows)),
            "the prompts' log-probabilities": lambda: ask(client, [engine.api.body(row.tolist()) for row in rows]),
            "scoring": lambda: scorer.score(rows),
        }
        for run in runs.values():
            run()  # allocates, and chooses kernels
        seconds = measured(runs, options.rounds)
        answer = ask(client, [engine.api.body(rows[0].tolist())])[0]
    for name, values in seconds.items():
        print(f"{name}: {total / median(values):,.0f} tokens/s")
    for name in list(runs)[:2]:
        ratios = [bare / ours for bare, ours in zip(seconds[name], seconds["scoring"], strict=True)]
        print(f"scoring, of the speed of {name}: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print_reading(answer, engine, rows[0].tolist(), median(seconds["scoring"]) / total)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:smollm2-135m-instruct")
    parser.add_argument("--command", default=".vllm-env/bin/vllm")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="the mean number of tokens in a row")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--argument", action="append", default=[], help="a further argument of the server")
    return parser.parse_args()


def configured(options: argparse.Namespace) -> ScoreConfig:
    served = {"command": [options.command, "serve"], "in_flight": options.in_flight, "arguments": options.argument}
    settings = {"engine": "http", "dtype": options.dtype, "window": 2048, "served": served}
    return ScoreConfig.model_validate(settings)


def drawn_rows(teacher: ModelReference, count: int, tokens: int) -> list[Ids]:
    """Rows of random tokens: of half to one and a half times the mean length."""
    generator, highest = np.random.default_rng(0), teacher.tokenizer.highest_id
    lengths = generator.integers(tokens // 2, tokens + tokens // 2, count)
    return [generator.integers(highest // 2, highest, length).astype(np.int32) for length in lengths]


def bare_bodies(engine: HttpEngine, rows: Sequence[Ids]) -> list[dict[str, Any]]:
    asked = ("model", "prompt", "max_tokens", "temperature")
    return [{name: value for name, value in engine.api.body(row.tolist()).items() if name in asked} for row in rows]


def ask(client: Client, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    return [answer for _, answer in client.answers("/v1/completions", len(bodies), bodies.__getitem__)]


def measured(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each run, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
        print(", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()), flush=True)
    return seconds


def print_reading(answer: Answer, engine: HttpEngine, ids: Sequence[int], seconds_per_token: float) -> None:
    """Print what parsing and checking a reply takes of this process's time, per token."""
    content = orjson.dumps(answer.content)
    work: dict[str, Callable[[], object]] = {
        "JSON by orjson": lambda: orjson.loads(content),
        "JSON by Python's own parser": lambda: json.loads(content),
        "checking and reading": lambda: engine.reader.read(ids, engine.api.values(answer.content, ids)),
    }
    print(f"a reply has {len(content) / len(ids):.0f} bytes of JSON per token")
    for name, run in work.items():
        times = []
        for _ in range(20):
            started = time.process_time()
            run()
            times.append((time.process_time() - started) / len(ids))
        least = min(times)
        print(f"{name}: {least * 1e6:.2f} µs per token, {least / seconds_per_token:.2%} of the time of scoring")


if __name__ == "__main__":
    main()
