"""What transformers says while its progress bars are off: passed on once, read as an error, or known to be harmless."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from alm_pipeline.runtime.progress import logger

HARMLESS = {
    "The tokenizer class you load from this checkpoint is not the same type": "tokenizer.json is loaded as it is, on "
    "purpose, by the class that changes nothing (`LoadedTokenizer.fast`)",
    "Setting `pad_token_id` to `eos_token_id`": "one prompt at a time is continued, which is not padded",
    "`use_cache=True` is incompatible with gradient checkpointing": "training uses no cache",
    "Passing `generation_config` together with generation-related arguments": "so transformers' assisted generation "
    "calls the draft",
    "`loss_type=None` was set in the config but it is unrecognized": "the losses are this project's own",
    "The tokenizer has new PAD/BOS/EOS tokens": "the student's ids are set from its tokenizer (`save_student`)",
}
"""The beginnings of warnings that say nothing about results here, each with its reason. All others are passed on."""

_REPORT = "LOAD REPORT"
# a command's log records are inert already: the escape character is written out
_COLOR = re.compile(r"(?:\x1b|\\x1b)\[[0-9;]*m")
_reports: ContextVar[list[str] | None] = ContextVar("load_reports", default=None)


@contextmanager
def load_reports() -> Iterator[list[str]]:
    """Collect the reports about loaded weights that transformers logs in this thread, instead of passing them on."""
    reports: list[str] = []
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


class _Relay(logging.Handler):
    """Passes each warning of transformers on to this project's log, once in a process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._passed: set[str] = set()
        self._lock, self._blocks = threading.Lock(), 0
        self._before = list[logging.Handler](), logging.WARNING, False

    def emit(self, record: logging.LogRecord) -> None:
        message = _COLOR.sub("", record.getMessage())
        reports = _reports.get()
        if _REPORT in message and reports is not None:
            reports.append(message)
        elif message not in self._passed and not message.startswith(tuple(HARMLESS)):
            self._passed.add(message)
            logger.log(record.levelno, "transformers: %s", message)

    def install(self) -> None:
        """Take the place of transformers' own handler, which writes to stderr between this project's bars."""
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._before = _root.handlers, _root.level, _root.propagate
                # transformers propagates where the environment has CI, which would show each warning twice
                _root.handlers, _root.propagate = [self], False
                # a user may have silenced transformers, but not that weights are missing
                _root.setLevel(min(_root.level, logging.WARNING))

    def uninstall(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                _root.handlers, level, _root.propagate = self._before
                _root.setLevel(level)


_root = logging.getLogger("transformers")
_relay = _Relay()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off transformers' progress bars, since this project shows its own, and pass its warnings on to our log."""
    from transformers.utils import logging as transformers_logging  # importing it takes a second

    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    _relay.install()
    try:
        yield
    finally:
        _relay.uninstall()
        if had_bars:  # not inside of another block: its checkpoints would show them
            transformers_logging.enable_progress_bar()
