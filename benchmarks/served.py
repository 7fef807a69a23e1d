"""Scoring over HTTP against the server's own speed: `python -m benchmarks.served --command .vllm-env/bin/vllm …`.

Two vLLM servers, one with the plugin and one without, and the same rows of tokens in turn: processed as bare prompts,
without any log-probability (the head is computed for a row's last token only); with the prompt's log-probabilities as
vLLM without the plugin gives them to anyone, whose replies are thrown away; and scored by this project, replies parsed,
checked and put together. All with the same client and as many requests at a time. Then, from one reply: the time that
JSON takes with the fast parser and with Python's own, and the rest of reading a reply.

Bare prompts skip the head, so scoring can't reach their speed: with the head a share x of a token's multiplications,
its limit is 1 / (1 + x). In SmolLM2-135M x is 0.27, in models of 7 billion parameters and more under 0.07; `--layers
120` gives a model of random weights with SmolLM2's head and four times its layers, whose x is that of these.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
import torch

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.configuration import empty_model
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.served.client import Answer, Client
from alm_pipeline.scoring.served.engines import HttpEngine
from alm_pipeline.scoring.served.replies import Reader
from alm_pipeline.scoring.served.server import started_server
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.served_scorer import ServedScorer
from alm_pipeline.scoring.windows import Ids


def main() -> None:
    options = arguments()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    config = configured(options)
    with ExitStack() as stack:
        teacher = ModelReference(options.model)
        if options.layers:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            teacher = random_teacher(teacher, options.layers, Path(folder, "random"))
        rows = drawn_rows(teacher, options.rows, options.tokens)
        vocabulary, total = ServedVocabulary.of(teacher), sum(map(len, rows))
        clients = [opened_client(stack, teacher, config, vocabulary, plugin) for plugin in (True, False)]
        engines = [HttpEngine.vllm(client, Reader(vocabulary, config.top_k)) for client in clients]
        scorer = ServedScorer(engines[0], teacher, config, vocabulary)
        print(f"{teacher.label}, {options.dtype}: {len(rows)} rows, {total:,} tokens, {engines[0].facts[0].engine}")
        share = head_share(teacher)
        print(f"the head is {share:.3f} of the other multiplications: at most {1 / (1 + share):.3f} of bare prompts")
        bodies = [engines[1].api.body(row.tolist()) for row in rows]
        runs: dict[str, Callable[[], object]] = {
            "bare prompts": lambda: ask(clients[1], [bare(body) for body in bodies]),
            "the prompts' log-probabilities": lambda: ask(clients[1], bodies),
            "scoring": lambda: scorer.score(rows),
        }
        for run in runs.values():
            run()  # allocates, and chooses kernels
        seconds = measured(runs, options.rounds)
        answer = ask(clients[0], bodies[:1])[0]
    for name, values in seconds.items():
        print(f"{name}: {total / median(values):,.0f} tokens/s")
    for name in list(runs)[:2]:
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["scoring"], strict=True)]
        print(f"scoring, of the speed of {name}: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print_reading(answer, engines[0], rows[0].tolist(), median(seconds["scoring"]) / total)


def opened_client(
    stack: ExitStack, teacher: ModelReference, config: ScoreConfig, vocabulary: ServedVocabulary, plugin: bool
) -> Client:
    """A client of a new server, with the plugin or as vLLM is without it."""
    if not plugin:
        os.environ["VLLM_PLUGINS"] = ""  # none of the installed ones
        arguments = (*config.served.arguments, "--logprobs-mode", "raw_logprobs")
        config = config.model_copy(update={"served": config.served.model_copy(update={"arguments": arguments})})
    server = stack.enter_context(started_server(teacher, config, vocabulary))
    return stack.enter_context(Client([server.url], config.served))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:smollm2-135m-instruct")
    parser.add_argument("--layers", type=int, help="a model of random weights with this many layers in its place")
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


def random_teacher(teacher: ModelReference, layers: int, folder: Path) -> ModelReference:
    """A model of the same shape, with another number of layers and random weights."""
    config = teacher.load_config()
    config.num_hidden_layers = layers
    model = empty_model(config, teacher.name).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    teacher.tokenizer.fast.save_pretrained(folder)
    return ModelReference(str(folder))


def head_share(teacher: ModelReference) -> float:
    """The head's multiplications per token as a share of those of all layers; attention to other tokens not counted."""
    with torch.device("meta"):
        model = empty_model(teacher.load_config(), teacher.name)
    head = model.get_output_embeddings().weight
    body = sum(weight.numel() for name, weight in model.named_parameters() if "layers." in name and weight.dim() == 2)
    return float(head.numel() / body)


def drawn_rows(teacher: ModelReference, count: int, tokens: int) -> list[Ids]:
    """Rows of random tokens: of half to one and a half times the mean length."""
    generator, highest = np.random.default_rng(0), teacher.tokenizer.highest_id
    lengths = generator.integers(tokens // 2, tokens + tokens // 2, count)
    return [generator.integers(highest // 2, highest, length).astype(np.int32) for length in lengths]


def bare(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name in ("model", "prompt", "max_tokens", "temperature")}


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
