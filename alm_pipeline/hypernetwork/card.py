"""What is written beside a hypernetwork's weights: a card, metrics, evaluations, and a picture of them."""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from alm_pipeline.hypernetwork.evaluation import BASELINES, EVALUATIONS, NETWORK
from alm_pipeline.hypernetwork.settings import HypernetConfig
from alm_pipeline.hypernetwork.training import METRICS, TrainingState
from alm_pipeline.runtime.output_files import can_draw, write_outputs
from storage.printed.inert import markdown, markdown_block, one_line
from storage.printed.secrets import without_secrets

CARD, METRICS_FILE, EVALUATIONS_FILE, PICTURE = "README.md", "metrics.parquet", "evaluations.parquet", "curves.png"
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22")


def write_reports(folder: Path, config: HypernetConfig, state: TrainingState, results: Mapping[str, Any]) -> None:
    """Write the card, the tables and the curves of a finished training into its folder."""
    pq.write_table(pa.Table.from_pylist(state.metrics, METRICS), folder / METRICS_FILE, compression="zstd")
    pq.write_table(pa.Table.from_pylist(state.evaluations, EVALUATIONS), folder / EVALUATIONS_FILE, compression="zstd")
    (folder / CARD).write_text(_card(config, results, has_picture=can_draw()), encoding="utf-8")
    write_outputs(folder, {}, {PICTURE: partial(_picture, state)})


def results_of(state: TrainingState) -> dict[str, Any]:
    """Return what the manifest says of a training: bits per byte by tokenizer and method, and the step that is kept."""
    bits: dict[str, dict[str, float]] = {}
    for row in state.evaluations:
        if row["method"] in BASELINES or row["step"] == state.best_step:
            bits.setdefault(str(row["tokenizer"]), {})[str(row["method"])] = float(str(row["bits_per_byte"]))
    return {"held_out_bits_per_byte_by_tokenizer": bits, "chosen_step": state.best_step, "steps": state.step}


def _card(config: HypernetConfig, results: Mapping[str, Any], *, has_picture: bool) -> str:
    methods = (*BASELINES, NETWORK)
    rows = [
        f"| {markdown(tokenizer)} | {' | '.join(f'{bits[method]:.4f}' for method in methods)} |"
        for tokenizer, bits in results["held_out_bits_per_byte_by_tokenizer"].items()
    ]
    settings = yaml.safe_dump(without_secrets(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    picture = f"\n![training]({PICTURE})\n" if has_picture else ""
    table = "\n".join(rows)
    model = one_line(config.model)
    command = f"alm transfer {model} TOKENIZER FOLDER --initialization hypernetwork --hypernetwork THIS_FOLDER"
    return f"""---
tags:
- hypernetwork
- alm-pipeline
---

# A hypernetwork of {markdown(one_line(config.model))}

It predicts the embeddings of any tokenizer's tokens for this model, and no other
([ZeTT](https://arxiv.org/abs/2405.07883)):

{markdown_block(command)}

Bits per byte of held-out texts, without training of the model; no step of the training has drawn one of these
tokenizers. Step {results["chosen_step"]} of {results["steps"]}, which has the lowest mean, is kept.

| tokenizer | {" | ".join(methods)} |
|---|{"---:|" * len(methods)}
{table}
{picture}
## Settings

{markdown_block(settings, "yaml")}
"""


def _picture(state: TrainingState) -> bytes:
    """Draw the loss of each step, and the bits per byte of each evaluation beside FVT's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses = ([row[name] for row in state.metrics] for name in ("step", "loss"))
    left.plot(steps, losses, color=_COLORS[0], linewidth=0.8)
    left.set(xlabel="step", title="loss", yscale="log" if losses and min(losses) > 0 else "linear")
    tokenizers = dict.fromkeys(str(row["tokenizer"]) for row in state.evaluations)
    for number, tokenizer in enumerate(tokenizers):
        color = _COLORS[number % len(_COLORS)]
        right.plot(*_curve(state.evaluations, tokenizer, NETWORK), color=color, marker=".", label=tokenizer[-40:])
        (_, (fvt,)) = _curve(state.evaluations, tokenizer, BASELINES[0])
        right.axhline(fvt, color=color, linestyle=":", linewidth=0.8)
    right.set(xlabel="step", title="held-out bits per byte (dotted: fvt)")
    right.legend(fontsize="x-small", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    content = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _curve(rows: Sequence[Mapping[str, Any]], tokenizer: str, method: str) -> tuple[list[int], list[float]]:
    chosen = [row for row in rows if row["tokenizer"] == tokenizer and row["method"] == method]
    return [row["step"] for row in chosen], [row["bits_per_byte"] for row in chosen]
