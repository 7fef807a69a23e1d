"""Access to lm-evaluation-harness, which is an optional dependency."""

from typing import Any

from storage.errors import UserError


def lm_eval_harness() -> Any:
    """Return the module `harness`. Raises UserError if lm_eval is not installed."""
    try:
        from alm_pipeline.ensemble import harness
    except ModuleNotFoundError as error:
        raise UserError(f"tasks of lm_eval need {error.name}: pip install 'alm-pipeline[eval]'") from error
    return harness
