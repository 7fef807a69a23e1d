"""What is worth another try: a store or network that fails, too little memory; not what a user has to mend."""

from typing import Any

from prefect.tasks import exponential_backoff

from storage.errors import REFUSALS, UserError, http_status

# of these packages every error is one of the network or of a server; what else they raise are OSErrors, too
_NETWORK = {
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpcore",
    "httpx",
    "httpx2",
    "requests",
    "urllib3",
}
_MEMORY = {"OutOfMemoryError"}
# what a server would answer again
_FINAL = REFUSALS | {400, 410}
_NEVER = (UserError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

RETRYING: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": lambda _task, _run, state: _failed_for_now(state),
}
"""A task's settings: after about 5, 10, 20 and 40 s, so that many tasks don't come back at once."""


def is_worth_retrying(error: BaseException) -> bool:
    """Whether the same might go well a little later."""
    if isinstance(error, _NEVER) or http_status(error) in _FINAL:
        return False
    if isinstance(error, OSError | MemoryError | EOFError):
        return True
    kinds = type(error).__mro__
    return any(kind.__module__.split(".")[0] in _NETWORK or kind.__name__ in _MEMORY for kind in kinds)


def _failed_for_now(state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return is_worth_retrying(error)
    return False
