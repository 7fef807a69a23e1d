"""A server that a run starts: it is ready when it is used, is started again, and never outlives the run."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.scoring.served.client import Client
from alm_pipeline.scoring.served.server import server_arguments, started_server
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.served_scorer import open_served_scorer
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.scoring.served.scorers import assert_same

SERVE = str(Path(__file__).with_name("serve.py"))


def config(*arguments: str, command: tuple[str, ...] = (sys.executable, SERVE), **served: Any) -> ScoreConfig:
    served = {"command": command, "arguments": arguments, "probe": "windows", "wait": 60, **served}
    return ScoreConfig.model_validate({"engine": "http", "dtype": "float32", "served": served})


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def servers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if SERVE in child.cmdline()]


@pytest.mark.long
def test_a_server_is_started_again_if_it_dies_and_ends_with_the_run(llama_folder: str) -> None:
    teacher = ModelReference(llama_folder)
    texts = [np.array(teacher.tokenizer.fast(text)["input_ids"], np.int32) for text in tiny.TEXTS]
    with open_served_scorer(teacher, config("--die-after", "11")) as scorer:
        first = servers_of(psutil.Process())
        assert first
        found = scorer.score(texts)
        again = scorer.score(texts)
        second = servers_of(psutil.Process())
        assert second
        assert not set(first) & set(second)
    for one, two in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
    assert servers_of(psutil.Process()) == []


def test_a_run_starts_a_server_of_hidden_states(llama_folder: str) -> None:
    teacher = ModelReference(llama_folder)
    texts = [np.array(teacher.tokenizer.fast(text)["input_ids"], np.int32) for text in tiny.TEXTS]
    with open_served_scorer(teacher, config(hidden_states=True, head_device="cpu")) as scorer:
        found = scorer.score(texts)
        assert scorer.description == "vllm 0.32.0 by hidden states, float32, quantization unknown"
    assert_same(found, Scorer.load(teacher, ScoreConfig(dtype="float32"), "cpu").score(texts))
    assert servers_of(psutil.Process()) == []


BARE = python(
    "import os, sys, http.server as h\n"
    "class Handler(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n"
    "    def do_POST(self):\n"
    "        print('out of memory', file=sys.stderr, flush=True); os._exit(1)\n"
    "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
    "h.ThreadingHTTPServer(('127.0.0.1', port), Handler).serve_forever()\n"
)
"""the command of a server that is ready at once, and dies of its first request"""


@pytest.mark.bad_input
def test_a_server_that_keeps_dying_ends_the_run_at_once(llama_folder: str) -> None:
    teacher, chosen = ModelReference(llama_folder), config(command=BARE, wait=300)
    with started_server(teacher, chosen, ServedVocabulary.of(teacher)) as server:  # noqa: SIM117
        with Client([server.url], chosen.served, lambda: server.why_gone) as client:
            with pytest.raises(UserError, match=r"the server has died 4 times: its last lines:\n(.*\n)*out of memory"):
                list(client.answers("/v1/completions", 3, lambda _: {}))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_server(
    llama_folder: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = (
        "import sys, time\n"
        "from alm_pipeline.config import ScoreConfig\n"
        "from alm_pipeline.models.reference import ModelReference\n"
        "from alm_pipeline.scoring.served.server import started_server\n"
        "from alm_pipeline.scoring.served.vocabulary import ServedVocabulary\n"
        "teacher, config = ModelReference(sys.argv[1]), ScoreConfig.model_validate_json(sys.argv[2])\n"
        "with started_server(teacher, config, ServedVocabulary.of(teacher)):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    arguments = [llama_folder, config(command=BARE).model_dump_json()]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) == 2  # the guard and the server
        assert list(tmp_path.glob("alm-served-*"))
        os.kill(run.pid, number)
        run.wait(20)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert list(tmp_path.glob("alm-served-*")) == []


@pytest.mark.parametrize(
    ("command", "timeout", "problem"),
    [
        (python("raise SystemExit('alm-scores: 50 logits')"), 60, "ended while it started: alm-scores: 50 logits"),
        (python("print('no GPU'); raise SystemExit(3)"), 60, "ended while it started: its last lines:\nno GPU"),
        (("no-such-command",), 60, "no-such-command: can't be started.*correct score.served.command"),
        (python("import time; time.sleep(60)"), 0.5, r"did not start within 0\.5 s"),
    ],
)
@pytest.mark.bad_input
def test_a_server_that_does_not_start_is_reported_with_its_last_lines(
    llama_folder: str, command: tuple[str, ...], timeout: float, problem: str
) -> None:
    opened = open_served_scorer(ModelReference(llama_folder), config(command=command, start_timeout=timeout))
    with pytest.raises(UserError, match=problem):
        opened.__enter__()


def test_the_arguments_are_what_exact_scores_need(llama_folder: str) -> None:
    teacher = ModelReference(llama_folder)
    served = {"quantization": "fp8", "tensor_parallel": 4, "pipeline_parallel": 2, "batched_tokens": 4096}
    settings = {"engine": "http", "top_k": 5, "served": {**served, "arguments": ["--seed", "1"]}}
    found = " ".join(server_arguments(teacher, ScoreConfig.model_validate(settings)))
    assert found == (
        f"{llama_folder} --served-model-name tiny-llama --dtype bfloat16 --max-model-len 513 --max-logprobs 8 "
        "--logprobs-mode raw_logits --generation-config vllm --quantization fp8 --tensor-parallel-size 4 "
        "--pipeline-parallel-size 2 --max-num-batched-tokens 4096 --no-enable-prefix-caching --skip-tokenizer-init "
        "--seed 1"
    )
