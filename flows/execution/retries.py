"""Which errors are worth a retry: those of a store or the network, and lack of memory, but not a user's mistakes."""

from typing import Any

from prefect.tasks import exponential_backoff

from storage.errors import UserError, is_final, is_of_network_or_memory

_NEVER = (UserError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

RETRYING: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": lambda _task, _run, state: _is_retryable_failure(state),
}
"""A task's settings: retries after about 5, 10, 20 and 40 s, with jitter so that many tasks don't retry at once."""


def is_worth_retrying(error: BaseException) -> bool:
    """Whether the same call might succeed a little later."""
    if isinstance(error, _NEVER) or is_final(error):
        return False
    return isinstance(error, OSError | MemoryError | EOFError) or is_of_network_or_memory(error)


def _is_retryable_failure(state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return is_worth_retrying(error)
    return False
