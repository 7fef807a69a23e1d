"""A student that FSDP2 splits between processes, and its weights copied back into one model.

Every layer is a group of its own and is gathered when it computes. The remaining parameters (embeddings, last norm,
head, projections) belong to the root, which stays gathered while the student's forward pass computes the losses and
until their gradients exist. So the head sees its whole weight in both directions, tied or not. Sums over processes are
in float32, whatever dtype the layers compute in.
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


def shard_model(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Keep only this process's part of every parameter, on its device. Layers are gathered and compute in `dtype`.

    The weights are those of the first process, as with DDP.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = _broadcast_tensor(parameter.data, device)
    # activations between layers stay float32, as without sharding
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    stack = layers(model)
    for layer in stack:
        # GradMag differentiates by the last layer's weights before the backward pass
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=layer is not stack[-1])
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _broadcast_tensor(values: Tensor, device: torch.device) -> Tensor:
    sent = values.to(device)
    torch.distributed.broadcast(sent, src=0)
    return sent.to(values.device)


@contextmanager
def kept_gathered(model: nn.Module) -> Iterator[None]:
    """Keep parameters gathered while gradients are taken inside, before the backward pass."""
    setters = (
        (model.set_is_last_backward, model.set_reshard_after_backward, model.set_requires_gradient_sync)
        if isinstance(model, FSDPModule)
        else ()
    )
    for setter in setters:
        setter(False)
    yield
    for setter in setters:
        setter(True)


@torch.no_grad()
def copy_full_weights(sharded: nn.Module, full_model: nn.Module | None) -> None:
    """Copy every full parameter into `full_model`, in the process that has one. All processes have to call this."""
    targets = dict(full_model.named_parameters()) if full_model else {}
    for name, value in sharded.named_parameters():
        full = full_tensor(value)
        if full_model:
            targets[name].copy_(full)


def full_tensor(value: Any) -> Any:
    """Return a distributed tensor as one tensor in all processes, which all have to call this; others unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def use_full_optimizer_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer of a sharded student save and load the states that an unsharded student's would.

    All processes have to call `state_dict`.
    """
    optimizer.register_state_dict_post_hook(_with_full_states)
    optimizer.register_load_state_dict_pre_hook(_with_sharded_states)


def _with_full_states(_: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    states = {
        index: {name: _full_on_cpu(value) for name, value in state.items()} for index, state in content["state"].items()
    }
    return content | {"state": states}


def _full_on_cpu(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _with_sharded_states(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        index: {name: distribute_like(parameters[index], value) for name, value in state.items()}
        for index, state in content["state"].items()
    }
    return content | {"state": states}


def distribute_like(parameter: Any, value: Any) -> Any:
    """Return this process's part of a tensor that belongs to a sharded parameter; scalars (step counts) unchanged."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    on_device = value.to(parameter.to_local().device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
