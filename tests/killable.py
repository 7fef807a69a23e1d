"""A process that runs a pipeline's stages and is killed (-9) at a chosen moment.

Loading torch and the models takes seconds, so one process, started by `KillableRunner`, loads everything and runs all
stages once; each run to be killed is a fork of it. Requests and answers are lines of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def _train(pipeline: Any) -> object:
    """Train without the page about the student, whose tables Polars makes: its threads are not in a forked process."""
    from alm_pipeline.student_report import page

    page.write_run_report = lambda *_, **__: None
    return pipeline.train()


STAGES: dict[str, Callable[[Any], object]] = {
    "shard": lambda pipeline: pipeline.shard(),
    "train tokenizer": lambda pipeline: pipeline.train_tokenizer(),
    "tokenize teacher": lambda pipeline: pipeline.tokenize("teacher"),
    "tokenize student": lambda pipeline: pipeline.tokenize("student"),
    "align": lambda pipeline: pipeline.align(),
    "score": lambda pipeline: pipeline.score(),
    "train": _train,
}


def _rounds(pipeline: Any) -> Any:
    """Return the rounds of a configuration, without the pages about students, as in `_train`."""
    from alm_pipeline.rounds import on_policy
    from alm_pipeline.student_report import page

    page.write_run_report = lambda *_, **__: None
    vars(on_policy)["write_run_report"] = page.write_run_report
    return on_policy.OnPolicy(pipeline.config, pipeline.root)


ROUND_STAGES: dict[str, Callable[[Any], object]] = {
    "prepare": lambda pipeline: _rounds(pipeline).prepare(),
    "write": lambda pipeline: _rounds(pipeline).write(1),
    "rounds": lambda pipeline: _rounds(pipeline).run(),
}
SETS = {"stages": STAGES, "rounds": ROUND_STAGES}
_WRITES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class KillableRunner:
    """The test's side: `run` runs one stage in a fork and returns when the fork has ended or was killed."""

    def __init__(self, config: str, folder: Path, stages: str = "stages") -> None:
        """`stages` is one of `SETS`."""
        with (folder / "killable.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.killable", config, str(folder), stages],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.loaded = self._answer()

    def run(
        self,
        stage: str,
        root: str,
        environment: Mapping[str, str],
        at_event: int | None = None,
        after_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Run a stage and kill it at its n-th write, after some seconds, or not at all.

        Returns `killed`, the number of `events`, the last `event` and the `seconds` that it took.
        """
        assert self._process.stdin
        request = {"stage": stage, "root": root, "environment": dict(environment)}
        request |= {"at_event": at_event, "after_seconds": after_seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the killable process ended: see killable.log")
        answer: dict[str, Any] = json.loads(line)
        if error := answer.pop("error", None):
            raise RuntimeError(error)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Events:
    """Counts writes to this machine's disk and by HTTP requests; kills the process at the n-th."""

    def __init__(self, folders: Sequence[str], fatal: int | None, report: Callable[[str, int], None]) -> None:
        self._folders, self._fatal, self._report = folders, fatal, report
        self.count = 0

    def happens(self, what: str, last_act: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self._fatal:
            last_act()
            self._report(what, self.count)
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        import aiobotocore.httpsession

        sys.addaudithook(self._on_audit)
        send = aiobotocore.httpsession.AIOHTTPSession.send

        async def watched(session: Any, request: Any) -> Any:
            if request.method in ("GET", "HEAD"):
                return await send(session, request)
            self.happens(f"before {request.method} {request.url}")
            answer = await send(session, request)
            self.happens(f"after {request.method} {request.url}")
            return answer

        aiobotocore.httpsession.AIOHTTPSession.send = watched

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in _WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  (a Path here would be audited in turn)
            if path.startswith(tuple(self._folders)):
                # an opened file exists and is empty at the time of the kill
                self.happens(f"{event} {path}", lambda: event == "open" and os.open(path, arguments[2], 0o666))


def _child(config: Any, request: dict[str, Any], stages: Mapping[str, Any], pipe: int) -> None:
    from alm_pipeline.pipeline import Pipeline
    from storage.lease import _ObjectLease

    # a killed holder's lease in an object store is taken over at once
    _ObjectLease.BEAT_S, _ObjectLease.GIVEN_UP_AFTER_S = 0.05, 0.3

    def report(what: str, count: int) -> None:
        os.write(pipe, json.dumps({"event": what, "events": count}).encode())

    os.environ.update(request["environment"])
    events = _Events([request["root"], request["environment"]["ALM_CACHE"]], request["at_event"], report)
    pipeline = Pipeline(config, request["root"])
    events.watch()
    stages[request["stage"]](pipeline)
    report("the end", events.count)


def _fork(config: Any, request: dict[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    start, child = time.monotonic(), os.fork()
    if not child:
        status = 1
        try:
            _child(config, request, stages, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
            os.write(writing, json.dumps({"error": traceback.format_exc()}).encode())
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    status = _wait(child, start, request["after_seconds"])
    with os.fdopen(reading, "rb") as pipe:
        report = pipe.read()
    answer = json.loads(report) if report else {}
    return {**answer, "killed": os.WIFSIGNALED(status), "seconds": time.monotonic() - start}


def _wait(child: int, start: float, seconds: float | None) -> int:
    if seconds is None:
        return os.waitpid(child, 0)[1]
    while time.monotonic() - start < seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main(config_json: str, folder: str, chosen: str) -> None:
    """Load everything by running all stages, then serve requests."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keeps what the stages print out of the answers
    import s3fs  # noqa: F401  (loaded before the forks)

    from alm_pipeline.config import AlmConfig
    from alm_pipeline.pipeline import Pipeline

    config, stages = AlmConfig.model_validate_json(config_json), SETS[chosen]
    pipeline, seconds = Pipeline(config, f"{folder}/unbroken"), {}
    for stage, run in stages.items():
        start = time.monotonic()
        run(pipeline)
        seconds[stage] = time.monotonic() - start
    print(json.dumps(seconds), file=answers)
    for line in sys.stdin:
        print(json.dumps(_fork(config, json.loads(line), stages)), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
