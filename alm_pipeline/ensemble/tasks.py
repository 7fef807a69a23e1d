"""lm-evaluation-harness, which is an extra, where it is installed."""

from typing import Any

from storage.errors import UserError


def lm_eval_harness() -> Any:
    """The module that works with lm_eval. Raises UserError where that is not installed."""
    try:
        from alm_pipeline.ensemble import harness
    except ModuleNotFoundError as error:
        raise UserError(f"tasks of lm_eval need {error.name}: pip install 'alm-pipeline[eval]'") from error
    return harness
