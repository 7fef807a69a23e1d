"""Attention by each of torch's backends, and FSDP2 on one GPU."""

import tempfile
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from alm_pipeline.models.output_head import hidden_states
from alm_pipeline.training.model.isolation import check_isolation
from alm_pipeline.training.parallel.sharding import full_tensor, shard_model
from benchmarks.device import SMALL
from benchmarks.device.measuring import SIZES, Line, Lines, device, failed, seconds
from benchmarks.device.models import llama, placed
from benchmarks.device.training import TrainingCase, batches


def attention() -> Lines:
    rows, heads, tokens, width = SIZES.attention
    shape = (rows, heads, tokens, width)
    query, key, value = (
        torch.randn(*shape, device=device(), dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    flops = 4 * rows * heads * tokens**2 * width / 2  # causal
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):

        def run(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        try:
            yield Line(f"{backend.name.lower()}, causal: forward", flops / seconds(run) / 1e12, "TFLOP/s")
        except RuntimeError as error:
            yield Line(backend.name.lower(), failed(error))
    # on a processor, flex attention compiles for a minute
    for name in ("sdpa", "eager", "flash_attention_2", *(() if SMALL else ("flex_attention",))):
        model = placed(lambda: llama(2), torch.bfloat16).eval()
        try:
            model.set_attn_implementation(name)
            check_isolation(model, torch.bfloat16)
            with torch.no_grad():
                ids = torch.randint(SIZES.vocabulary, (2, SIZES.row_tokens), device=device())
                positions = torch.arange(SIZES.row_tokens // 2, device=device()).repeat(2, 2)
                taken = [seconds(partial(hidden_states, model, ids, given)) for given in (None, positions)]
            yield Line(f"{name}, two layers, whole rows", ids.numel() / taken[0], "tokens/s")
            yield Line(f"{name}, two layers, two examples per row", ids.numel() / taken[1], "tokens/s")
        except Exception as error:
            yield Line(f"attention {name}", failed(error))


def fsdp() -> Lines:
    """One GPU: the same loss and gradients as without, and what it costs."""
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo" if SMALL else "nccl", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        batch = batches(1)[0]
        results, taken = [], []
        for is_sharded in (False, True):
            case = TrainingCase()
            if is_sharded:
                shard_model(case.student, device(), torch.bfloat16)
                case.optimizer = torch.optim.AdamW(case.student.parameters(), lr=1e-5)
            loss = case.loss(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(case.student.parameters(), 1.0)
            results.append((float(loss.detach()), float(full_tensor(norm))))
            case.optimizer.zero_grad()
            taken.append(seconds(partial(case.step, batch), 3))
            del case
        torch.distributed.destroy_process_group()
    (plain_loss, plain_norm), (sharded_loss, sharded_norm) = results
    yield Line("sharded loss, error", abs(sharded_loss - plain_loss) / abs(plain_loss), "of the loss", 0.02)
    yield Line("sharded gradient norm, error", abs(sharded_norm - plain_norm) / plain_norm, "of the norm", 0.05)
    yield Line("sharded step / step", taken[1] / taken[0], "of the time")
