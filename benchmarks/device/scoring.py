"""Scores against float64, and the speed of scoring against a bare forward pass."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from alm_pipeline.config import ScoreConfig, TrainConfig
from alm_pipeline.models.output_head import hidden_states
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training.model.execution import configured_execution
from benchmarks.device import SMALL
from benchmarks.device.measuring import SIZES, Line, Lines, device, peak_bytes, peak_flops, seconds
from benchmarks.device.models import forward_flops, gemma, llama, placed, random_texts, vocabulary_of
from benchmarks.device.training import TrainingCase, batches


def scoring_correctness() -> Lines:
    makers: dict[str, Callable[[], Any]] = {"Llama": partial(llama, 2, 1000, 64), "Gemma": gemma}
    for name, make in makers.items():
        exact_model = make().double()
        texts = random_texts(6, int(exact_model.config.vocab_size))
        texts = [ids[:200] for ids in texts]
        boundary = vocabulary_of(exact_model).boundary_ids_K
        for dtype, limit in ((torch.float32, 2e-3), (torch.bfloat16, 0.3)):
            model = make().to(device(), dtype)
            scorer = Scorer(model, vocabulary_of(model), ScoreConfig(dtype="float32", batch_tokens=256))
            errors = [0.0]
            for ids, row in zip(texts, scorer.score(texts), strict=True):
                with torch.no_grad():
                    logits = exact_model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
                logprobs = logits.double().log_softmax(-1)
                tokens = logprobs[:-1].gather(-1, torch.from_numpy(ids[1:].astype(np.int64))[:, None]).squeeze(-1)
                errors.append(float(np.abs(row.logprobs[1:] - tokens.numpy()).max(initial=0)))
                following = logprobs[:, boundary].logsumexp(-1).numpy()
                errors.append(float(np.abs(row.boundary_logprobs - following).max()))
            yield Line(
                f"{name}, {str(dtype).removeprefix('torch.')}: largest error of scores", max(errors), "nats", limit
            )


def scoring_speed() -> Lines:
    model = placed(llama, torch.bfloat16).eval()
    texts = random_texts(SIZES.texts, SIZES.vocabulary)
    tokens, flops = sum(map(len, texts)), forward_flops(model, texts)
    rates = {}
    for name, settings in (("batches of 4,096", {"batch_tokens": 4096}), ("batches as memory allows", {})):
        scorer = Scorer(model, vocabulary_of(model), ScoreConfig.model_validate(settings))
        if not SMALL:
            scorer.score(texts)  # finds the batches and measures the head
        taken = seconds(partial(scorer.score, texts), 2, warm=0)
        limit = seconds(partial(bare_forward, scorer, texts), 2)
        rates[name] = tokens / taken
        yield Line(f"{name} ({scorer.budget.tokens:,}): scoring", tokens / taken, "tokens/s")
        yield Line(f"{name}: model FLOP utilization", flops / taken / peak_flops())
        yield Line(f"{name}: of the bare forward pass and head product", limit / taken)
    peak = peak_bytes(partial(scorer.score, texts[:64]))
    yield Line("peak memory above the model", peak / 1e9, "GB")
    yield Line("gain by larger batches", max(rates.values()) / min(rates.values()))


@torch.inference_mode()
def bare_forward(scorer: Scorer, texts: list[Any]) -> None:
    """The forward pass and one product with the head's weight, on batches as the scorer makes them; no softmax."""
    rest = sorted(texts, key=len, reverse=True)
    weight_VH: Any = scorer.model.get_output_embeddings().weight
    room = torch.empty(1024, len(weight_VH), dtype=weight_VH.dtype, device=weight_VH.device)
    while rest:
        rows = scorer.budget.rows(len(rest[0]))
        batch, rest = rest[:rows], rest[rows:]
        ids = np.zeros((len(batch), len(batch[0])), np.int64)
        for row, text in zip(ids, batch, strict=True):
            row[: len(text)] = text
        hidden = hidden_states(scorer.model, torch.from_numpy(ids).to(device()))
        for piece in hidden.flatten(0, 1)[: sum(map(len, batch))].split(1024):
            torch.mm(piece, weight_VH.T, out=room[: len(piece)])


def compiled() -> Lines:
    """The layers of the teacher, and of the student, compiled and not."""
    if SMALL:  # captures the graphs alone
        torch.compile = partial(torch.compile, backend="aot_eager")
    model = placed(llama, torch.bfloat16).eval()
    texts = random_texts(max(8, SIZES.texts // 4), SIZES.vocabulary)
    plain = Scorer(model, vocabulary_of(model), ScoreConfig(batch_tokens=8192))
    expected, taken = plain.score(texts), seconds(partial(plain.score, texts), 2)
    started = time.perf_counter()
    scorer = Scorer(model, vocabulary_of(model), ScoreConfig(batch_tokens=8192, compile=True))
    found = scorer.score(texts)
    yield Line("compiling the teacher's layers", time.perf_counter() - started, "s")
    differences = [
        float(np.abs(one.logprobs - two.logprobs)[1:].mean()) for one, two in zip(found, expected, strict=True)
    ]
    yield Line("compiled scores differ by, on average", max(differences), "nats", 0.1)
    yield Line("scoring, compiled / plain", seconds(partial(scorer.score, texts), 2) / taken, "of the time")
    del model, plain, scorer
    batch, case = batches(1)[0], TrainingCase()
    plain_s = seconds(partial(case.step, batch), 3)
    with configured_execution(case.student, TrainConfig(compile=True)):
        started = time.perf_counter()
        case.step(batch)
        yield Line("compiling the student's layers", time.perf_counter() - started, "s")
        yield Line("training step, compiled / plain", seconds(partial(case.step, batch), 3) / plain_s, "of the time")
