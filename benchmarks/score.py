"""Teacher scoring against its limit: `python -m benchmarks.score [--dtype float32] [--tokens 8192] …`.

The limit is what no scoring of these tokens can do without: the bare forward pass on the same batches, without the
model's head, and the matrix product with the head's weight, piece by piece into the same memory; no softmax. Timed in
turn in one run, the limit before and behind each scoring. Documents are mixed text and code of many lengths. Beside
the ratio: the share of padding in the batches, and the forward pass's and the head's parts of the limit.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models import load_tokenizer
from alm_pipeline.scoring.scorer import Scorer
from benchmarks.corpus import mixed_documents

Ids = npt.NDArray[np.int32]
PIECE_POSITIONS = 1024


def main() -> None:
    options = arguments()
    scorer = Scorer.load(options.model, ScoreConfig(dtype=options.dtype, batch_tokens=options.batch_tokens))
    examples = tokenized(options.model, options.tokens)
    limit = Limit(scorer, examples)
    real, padded = sum(map(len, examples)), sum(batch.numel() for batch, _ in limit.batches)
    print(
        f"{options.model}, {options.dtype}: {len(examples)} documents, {real:,} tokens, {padded / real - 1:.1%} padding"
    )
    runs = [limit.run, lambda: scorer.score(examples), limit.run]
    for run in runs[:2]:
        run()  # allocates, and chooses kernels
    limit.forward = limit.head = 0.0
    rounds = [[clocks(run) for run in runs] for _ in range(options.rounds)]
    for before, scoring, behind in rounds:
        print(f"limit {before[0]:.2f} and {behind[0]:.2f} s, scoring {scoring[0]:.2f} s", flush=True)
    print(f"of the limit's time, the forward pass takes {limit.forward / (limit.forward + limit.head):.0%}")
    print(f"{real / median(scoring[0] for _, scoring, _ in rounds):,.0f} tokens/s")
    for k, clock in enumerate(("speed", "speed, by processor time")):
        ratios = [(before[k] + behind[k]) / 2 / scoring[k] for before, scoring, behind in rounds]
        print(f"of the limit's {clock}: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


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
        self.scorer, self.forward, self.head = scorer, 0.0, 0.0
        self.weight_VH: Tensor = scorer.model.get_output_embeddings().weight
        self.logits_NV = torch.empty(
            PIECE_POSITIONS, len(self.weight_VH), dtype=self.weight_VH.dtype, device=self.weight_VH.device
        )
        self.batches: list[tuple[Tensor, int]] = []
        """with the tokens that are no padding"""
        rest = sorted(examples, key=len, reverse=True)
        while rest:
            rows = scorer.budget.rows(len(rest[0]))
            self.batches.append((padded(rest[:rows]).to(self.weight_VH.device), sum(map(len, rest[:rows]))))
            rest = rest[rows:]

    @torch.inference_mode()
    def run(self) -> None:
        for batch_BT, tokens in self.batches:
            started = time.perf_counter()
            hidden_BTH = self.scorer.model.base_model(input_ids=batch_BT, use_cache=False).last_hidden_state
            finish()
            middle = time.perf_counter()
            self.multiply(hidden_BTH.flatten(0, 1)[:tokens])  # as many as are no padding
            finish()
            self.forward += middle - started
            self.head += time.perf_counter() - middle

    def multiply(self, hidden_NH: Tensor) -> None:
        for piece_NH in hidden_NH.split(PIECE_POSITIONS):
            torch.mm(piece_NH, self.weight_VH.T, out=self.logits_NV[: len(piece_NH)])


def padded(rows: Sequence[Ids]) -> Tensor:
    ids_BT = torch.zeros(len(rows), len(rows[0]), dtype=torch.int64)
    for k, row in enumerate(rows):
        ids_BT[k, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids_BT


def clocks(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and the processor's seconds, from which a busy machine takes nothing."""
    started = time.perf_counter(), time.process_time()
    run()
    finish()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
