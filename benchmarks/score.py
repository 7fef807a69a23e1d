"""Teacher scoring against its limit: `python -m benchmarks.score [--dtype float32] [--tokens 8192] …`.

The limit is what no scoring of these tokens can do without: the bare forward pass on the same batches, without the
model's head, and the matrix product with the head's weight, piece by piece into the same memory; no softmax. Timed in
turn in one run, the limit before and behind each scoring. Documents are mixed text and code of many lengths. The
product comes twice: with logits in the model's precision, and with logits in float32, as scores need them (rounded to
bfloat16, logits of 20 are off by 0.06). Beside the ratios: the share of padding in the batches.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.models.output_head import hidden_states
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.scoring.scorer import Scorer
from benchmarks.corpus import mixed_documents

Ids = npt.NDArray[np.int32]
PIECE_POSITIONS = 1024


def main() -> None:
    options = arguments()
    scorer = Scorer.load(
        ModelReference(options.model), ScoreConfig(dtype=options.dtype, batch_tokens=options.batch_tokens)
    )
    examples = tokenized(options.model, options.tokens)
    limit = Limit(scorer, examples)
    real, padded = sum(map(len, examples)), sum(batch.numel() for batch, _ in limit.batches)
    print(
        f"{options.model}, {options.dtype}: {len(examples)} documents, {real:,} tokens, {padded / real - 1:.1%} padding"
    )
    runs = [limit.run, lambda: scorer.score(examples), limit.run]
    for run in runs[:2]:
        run()  # allocates, and chooses kernels
    rounds = []
    for _ in range(options.rounds):
        limit.clear()
        _, scoring, _ = (clocks(run) for run in runs)
        rounds.append([limit.forward / 2, limit.head / 2, limit.exact_head / 2, scoring])
        told = "forward {:.2f} s, product {:.2f} s, in float32 {:.2f} s; scoring {:.2f} s"
        print(told.format(*(seconds[0] for seconds in rounds[-1])), flush=True)
    print(f"{real / median(scoring[0] for *_, scoring in rounds):,.0f} tokens/s")
    for name, head in (("in the model's precision", 1), ("in float32", 2)):
        for k, clock in enumerate(("speed", "speed by processor time")):
            ratios = [(seconds[0][k] + seconds[head][k]) / seconds[3][k] for seconds in rounds]
            told = f"median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
            print(f"of the limit's {clock}, logits {name}: {told}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def tokenized(model: str, tokens: int) -> list[Ids]:
    """Documents of together about so many tokens, none longer than 1,024."""
    tokenizer, examples = load_tokenizer(model), list[Ids]()
    for document in mixed_documents(tokens * 4e-6):
        if sum(map(len, examples)) < tokens:
            examples.append(np.array(tokenizer(document).input_ids[:1024], np.int32))
    return examples


class Limit:
    """The forward pass and the head's matrix product on batches as the scorer makes them."""

    def __init__(self, scorer: Scorer, examples: Sequence[Ids]) -> None:
        self.scorer = scorer
        self.clear()
        self.weight_VH: Tensor = scorer.model.get_output_embeddings().weight
        exact_VH = self.weight_VH.float()
        self.products = [
            (weight_VH, torch.empty(PIECE_POSITIONS, len(weight_VH), dtype=weight_VH.dtype, device=weight_VH.device))
            for weight_VH in (self.weight_VH, exact_VH)
        ]
        """each weight with room for its logits"""
        self.batches: list[tuple[Tensor, int]] = []
        """with the tokens that are no padding"""
        rest = sorted(examples, key=len, reverse=True)
        while rest:
            rows = scorer.budget.rows(len(rest[0]))
            self.batches.append((padded(rest[:rows]).to(self.weight_VH.device), sum(map(len, rest[:rows]))))
            rest = rest[rows:]

    def clear(self) -> None:
        self.forward, self.head, self.exact_head = np.zeros((3, 2))
        """seconds, and the processor's, since then"""

    @torch.inference_mode()
    def run(self) -> None:
        for batch_BT, tokens in self.batches:
            hidden: list[Tensor] = []
            self.forward += clocks(partial(self.keep_hidden_states, batch_BT, hidden))
            hidden_NH = hidden[0].flatten(0, 1)[:tokens]  # as many as are no padding
            self.head += clocks(partial(multiply, hidden_NH, *self.products[0]))
            with matmul_precision("medium" if self.weight_VH.dtype == torch.bfloat16 else "highest"):
                self.exact_head += clocks(partial(multiply, hidden_NH.float(), *self.products[1]))

    def keep_hidden_states(self, ids_BT: Tensor, kept: list[Tensor]) -> None:
        kept.append(hidden_states(self.scorer.model, ids_BT))


def multiply(hidden_NH: Tensor, weight_VH: Tensor, logits_NV: Tensor) -> None:
    for piece_NH in hidden_NH.split(PIECE_POSITIONS):
        torch.mm(piece_NH, weight_VH.T, out=logits_NV[: len(piece_NH)])


def padded(rows: Sequence[Ids]) -> Tensor:
    ids_BT = torch.zeros(len(rows), len(rows[0]), dtype=torch.int64)
    for k, row in enumerate(rows):
        ids_BT[k, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids_BT


def clocks(run: Callable[[], object]) -> npt.NDArray[np.float64]:
    """Seconds, and the processor's seconds, from which a busy machine takes nothing."""
    started = time.perf_counter(), time.process_time()
    run()
    finish()
    return np.array([time.perf_counter() - started[0], time.process_time() - started[1]])


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
