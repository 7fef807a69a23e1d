"""Interrupts a training at a step, as a kill would."""

from collections.abc import Callable
from typing import Any

from alm_pipeline.training.loop import train as training


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[..., None]:
    """Return a replacement of `on_step_end` that raises Killed before the metrics of the step are logged."""
    on_step_end = training.TrainingProgress.on_step_end

    def killing(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        on_step_end(self, args, state, control, **others)
        if state.global_step == step:
            raise Killed

    return killing
