"""Which experiment trackers are installed, without importing one."""

from importlib.util import find_spec

from alm_pipeline.config import Tracker
from storage.errors import UserError


def check_tracker(tracker: Tracker) -> None:
    """Raise UserError, with the command that installs it, if a tracker's package is missing."""
    if find_spec(tracker) is None:
        raise UserError(f"log.report_to: {tracker} is not installed here: pip install 'alm-pipeline[{tracker}]'")
