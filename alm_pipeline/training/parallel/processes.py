"""The processes that train one student together: who this one is, what it is told, and their end.

`torchrun` and `accelerate launch` say so in the environment. The first process does what is done once: it holds the
lease, evaluates, writes checkpoints and the student. The others wait for it, without using a GPU.
"""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from alm_pipeline.config import TrainConfig
from storage.errors import UserError

_log = logging.getLogger(__name__)
Told = TypeVar("Told")
# the others wait while the first one evaluates, uploads, or waits for another run's lease; one that dies is noticed by
# torchrun, which ends the rest
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """One of `count`, on one of their machines."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_on_many_machines(self) -> bool:
        return self.count > self.local_count

    @property
    def leads_another_machine(self) -> bool:
        """It is the first of its machine, and the first of all is on another one."""
        return self.is_on_many_machines and self.local_rank == 0 and self.rank > 0


def this_process() -> Process:
    """As the environment says; the only one where it says nothing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names[:3]):
        return Process()
    defaults = {"LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    return Process(*(int(os.environ.get(name) or defaults[name]) for name in names))


@contextmanager
def joined() -> Iterator[Process]:
    """Bound to its GPU, and in touch with the others: over gloo between processors, NCCL between GPUs."""
    process = this_process()
    if torch.cuda.is_available():
        torch.cuda.set_device(process.local_rank)
    torch.distributed.init_process_group(timeout=_PATIENCE)
    yield process
    # not after an error: the others may be waiting in the middle of something
    torch.distributed.destroy_process_group()


def processes_here(config: TrainConfig) -> int:
    """How many processes this machine has for a training. Raises UserError where they can't share a step equally."""
    if config.processes is not None:
        _check_share(config, config.processes)
        return config.processes
    gpus = max(1, torch.cuda.device_count())
    count = max(count for count in range(1, gpus + 1) if config.accumulation % count == 0)
    if count < gpus:
        _log.warning(
            "train.accumulation %d: the batches of a step go to %d of %d GPUs: a multiple of %d uses all of them",
            config.accumulation, count, gpus, gpus,
        )  # fmt: skip
    return count


def batches_each(config: TrainConfig) -> int:
    """How many batches of a step are this process's. Raises UserError where not all processes have as many."""
    _check_share(config, this_process().count)
    return config.accumulation // this_process().count


def _check_share(config: TrainConfig, processes: int) -> None:
    if config.accumulation % processes:
        raise UserError(
            f"train.accumulation: {config.accumulation} batches a step can't be shared equally by {processes} "
            f"processes: take a multiple of {processes}, or other train.processes"
        )


def told_by_first(value: Told) -> Told:
    """The first process's value, in all of them; it waits for the first to say it."""
    if this_process().count == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def gathered_by_first(value: Told) -> list[Told]:
    """The values of all in the order of ranks, to the first process; nothing to the others."""
    process = this_process()
    if process.count == 1:
        return [value]
    values: list[Told] | None = [value] * process.count if process.is_first else None
    torch.distributed.gather_object(value, values)
    return values or []


def wait_for_all() -> None:
    """Until every process has called it."""
    if this_process().count > 1:
        torch.distributed.all_gather_object([None] * this_process().count, None)


def free_gpu_memory() -> None:
    """What this process keeps without need, such as a scored teacher's: others are about to use the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
