"""A vLLM server that a run starts on its machine, and its command, for servers that people start.

The server is in a session of its own, under a guard that ends it once the process that started it has ended, however
that ended. It is started again if it dies, a few times.
"""

import logging
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.own_packages import environment_with_own
from alm_pipeline.scoring.served.vocabulary import CARRIERS, ServedVocabulary
from storage.errors import UserError

FILE = "ALM_SCORES_FILE"
"""the environment variable that names the file for the plugin"""
_LOCAL = "127.0.0.1"
_STARTS = 4
_ENDS_WITHIN_S = 10.0
_LAST_LINES = 15
_OWN = "alm-scores: "
"""what the plugin and the guard begin their errors with"""
_log = logging.getLogger("alm_pipeline")


def server_arguments(teacher: ModelReference, config: ScoreConfig) -> tuple[str, ...]:
    """Return the arguments of `vllm serve` that this teacher's scores need, besides its address."""
    served = config.served
    options = {
        "--served-model-name": served.model or teacher.label,
        "--dtype": config.dtype,
        **(_pooling_options if served.hidden_states else _plugin_options)(config, window_size(teacher, config)),
        "--quantization": served.quantization,
        "--tensor-parallel-size": str(served.tensor_parallel) if served.tensor_parallel > 1 else None,
        "--pipeline-parallel-size": str(served.pipeline_parallel) if served.pipeline_parallel > 1 else None,
        "--max-num-batched-tokens": str(served.batched_tokens) if served.batched_tokens else None,
    }
    valued = [part for name, value in options.items() if value is not None for part in (name, value)]
    # in pooling mode vLLM does not start without a tokenizer, and never spells a token
    flags = ["--no-enable-prefix-caching", *([] if served.hidden_states else ["--skip-tokenizer-init"])]
    flags += ["--trust-remote-code"] if teacher.trust_remote_code else []
    return (str(teacher.folder), *valued, *flags, *served.arguments)


def _plugin_options(config: ScoreConfig, length: int | None) -> dict[str, str | None]:
    return {
        # the server also generates one token, because the boundary after a row's last token comes with it
        "--max-model-len": None if length is None else str(length + 1),
        "--max-logprobs": str(config.top_k + CARRIERS),
        "--logprobs-mode": "raw_logits",
        "--generation-config": "vllm",
    }


def _pooling_options(config: ScoreConfig, length: int | None) -> dict[str, str | None]:
    return {
        "--max-model-len": None if length is None else str(length),
        "--runner": "pooling",
        "--convert": "embed",
        "--pooler-config": '{"task":"token_embed","use_activation":false}',
    }


def server_environment(config: ScoreConfig, file: Path) -> dict[str, str]:
    """Return the variables that the server needs besides its own; `file` is the plugin's, if it is used."""
    if config.served.hidden_states:
        return {"VLLM_NO_USAGE_STATS": "1"}
    # the context and one generated token, which is not read again
    return {FILE: str(file), "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "VLLM_NO_USAGE_STATS": "1"}


def window_size(teacher: ModelReference, config: ScoreConfig) -> int | None:
    """Return the tokens of the longest row that is scored; None if there is no limit."""
    return min((limit for limit in (teacher.context_length, config.window) if limit), default=None)


def shell_command(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """Return a command as one types it."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(command)])


@contextmanager
def started_server(
    teacher: ModelReference, config: ScoreConfig, vocabulary: ServedVocabulary | None
) -> "Iterator[StartedServer]":
    """Yield a server that is ready. It has ended when the context ends.

    `vocabulary` is what the plugin has to know, if it is used. Raises UserError with the server's last lines if it does
    not start.
    """
    with tempfile.TemporaryDirectory(prefix="alm-served-", ignore_cleanup_errors=True) as folder:
        if vocabulary is not None:
            vocabulary.write(Path(folder, "alm-scores.json"))
        server = StartedServer(teacher, config, Path(folder))
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()


class StartedServer:
    """The server's process, its guard, and a thread that starts it again."""

    why_gone = ""
    """why it will not be started again; "" while it runs or will"""

    def __init__(self, teacher: ModelReference, config: ScoreConfig, folder: Path) -> None:
        port = _free_port()
        self.url, self._folder, self._log_file = f"http://{_LOCAL}:{port}", folder, folder / "server.log"
        self._timeout_s, self._stopping, self._starting = (
            config.served.start_timeout,
            threading.Event(),
            threading.Lock(),
        )
        address = ("--host", _LOCAL, "--port", str(port))
        self._command = (*config.served.command, *server_arguments(teacher, config), *address)
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", FILE)}
        self._environment = inherited | server_environment(config, folder / "alm-scores.json")
        self._process = self._start()
        self._watching = threading.Thread(target=self._watch, name="watch the server", daemon=True)

    def _start(self) -> "subprocess.Popen[bytes]":
        _log.info("starting a server: %s", shlex.join(self._command))
        guard = (sys.executable, "-P", "-m", "alm_pipeline.scoring.served.guard", str(os.getpid()), str(self._folder))
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                [*guard, *self._command],
                # the guard finds this package; the server has its own environment's packages
                env={**self._environment, "PYTHONPATH": environment_with_own().get("PYTHONPATH", "")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Raises UserError if the server ends, or takes too long."""
        deadline = time.monotonic() + self._timeout_s
        with httpx.Client(trust_env=False, timeout=5.0) as http:
            while not _is_ready(http, self.url):
                if self._process.poll() is not None:
                    raise UserError(f"the server ended while it started: {self._last_lines()}")
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the server did not start within {self._timeout_s:g} s (score.served.start_timeout): "
                        f"{self._last_lines()}"
                    )
                time.sleep(0.2)
        self._watching.start()

    def _watch(self) -> None:
        """Start the server again when it has died: requests go on once it answers."""
        for start in range(1, _STARTS + 1):
            self._process.wait()
            if self._stopping.is_set():
                return
            if start == _STARTS:
                self.why_gone = f"the server has died {_STARTS} times: {self._last_lines()}"
                return
            with self._starting:
                if self._stopping.is_set():
                    return
                _log.warning("the server has died, and is started again: %s", self._last_lines())
                self._process = self._start()

    def stop(self) -> None:
        with self._starting:
            self._stopping.set()
            with suppress(ProcessLookupError):
                self._process.terminate()
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_lines(self) -> str:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        own = [line[line.index(_OWN) :] for line in lines if _OWN in line]  # vLLM writes the process before it
        return own[-1] if own else "its last lines:\n" + "\n".join(lines[-_LAST_LINES:])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((_LOCAL, 0))
        return int(free.getsockname()[1])


def _is_ready(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
