"""The names of a run's stages that parameters accept. The command line imports this module, so it needs no Prefect."""

from typing import Literal

from alm_pipeline.preflight.phases import Phase as Phase

Until = Literal["scores", "student"]
"""Where a run stops: at complete caches, or at the finished student."""

PHASES: dict[Until, tuple[Phase, ...]] = {
    "scores": ("prepare", "score"),
    "student": ("prepare", "score", "train"),
}
"""What a run does for each `until`."""

Only = Literal["score", "train"]
"""A phase that a run can do alone, on what the earlier phases have written."""

POOL_DEPLOYMENTS: dict[Only, str] = {"score": "alm/score", "train": "alm/train"}
"""The deployment that does a phase alone on a GPU pool."""
