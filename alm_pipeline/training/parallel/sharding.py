"""A student split between processes by FSDP2, and put together again.

Every layer is a group of its own, gathered when it computes; the rest (embeddings, last norm, head, projections) is the
root's, gathered while the student's forward pass computes the losses and until their gradients are there. So the head
sees its whole weight in both directions, tied or not. Sums over processes are in float32, whatever layers compute in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from alm_pipeline.objective.term_weights import layers


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Leave each process its part of every parameter, on its device; layers are gathered, and compute, in `dtype`.

    The weights are the first process's, as with DDP.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = _from_first(parameter.data, device)
    # what goes from layer to layer stays float32, as without sharding
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    stack = layers(model)
    for layer in stack:
        # GradMag differentiates by the last layer's weights before the backward pass
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=layer is not stack[-1])
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _from_first(values: Tensor, device: torch.device) -> Tensor:
    sent = values.to(device)
    torch.distributed.broadcast(sent, src=0)
    return sent.to(values.device)


@contextmanager
def stays_gathered(model: nn.Module) -> Iterator[None]:
    """Gradients taken while inside, before the backward pass, leave what is gathered as it is."""
    steps = (
        (model.set_is_last_backward, model.set_reshard_after_backward, model.set_requires_gradient_sync)
        if isinstance(model, FSDPModule)
        else ()
    )
    for step in steps:
        step(False)
    yield
    for step in steps:
        step(True)


@torch.no_grad()
def gather(sharded: nn.Module, whole: nn.Module | None) -> None:
    """Copy the whole of every parameter into `whole`, in the process that has one; all processes have to call it."""
    places = dict(whole.named_parameters()) if whole else {}
    for name, value in sharded.named_parameters():
        full = whole_tensor(value)
        if whole:
            places[name].copy_(full)


def whole_tensor(value: Any) -> Any:
    """A tensor of parts as one, in all processes, which all have to call it; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def save_whole_states(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer of a sharded student save and load what one of the whole student would.

    All processes have to ask for its state.
    """
    optimizer.register_state_dict_post_hook(_with_whole_states)
    optimizer.register_load_state_dict_pre_hook(_with_sharded_states)


def _with_whole_states(_: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    states = {
        index: {name: _on_cpu(value) for name, value in state.items()} for index, state in content["state"].items()
    }
    return content | {"state": states}


def _on_cpu(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _with_sharded_states(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        index: {name: part_like(parameters[index], value) for name, value in state.items()}
        for index, state in content["state"].items()
    }
    return content | {"state": states}


def part_like(parameter: Any, value: Any) -> Any:
    """The process's part of what belongs to a sharded parameter; a number of steps as it is."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    on_device = value.to(parameter.to_local().device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
