"""What a server starts by itself: the runs of a schedule, and the automations in automations/."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.schedules import IntervalSchedule

from alm_pipeline.config import AlmConfig
from tests.flows.loopback import ROOT, Loopback, wait_for

pytestmark = [pytest.mark.flow, pytest.mark.timeout(900)]
FILES = ROOT / "automations"


@pytest.fixture
def messages() -> Iterator[tuple[str, list[str]]]:
    """The URL of a webhook, and the messages that it has received."""
    received: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def parameters(config: AlmConfig, root: Path) -> dict[str, Any]:
    return {"config": config.model_dump(mode="json"), "storage": str(root)}


def runs_of(loopback: Loopback, deployment: str) -> list[Any]:
    with loopback.client() as client:
        id_ = client.read_deployment_by_name(deployment).id
        runs = FlowRunFilter.model_validate({"deployment_id": {"any_": [id_]}})
        return client.read_flow_runs(flow_run_filter=runs)


def edited(file: str, folder: Path, old: str, new: str) -> str:
    text = (FILES / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))
    return str(folder / file)


def test_a_schedule_starts_runs(loopback: Loopback, config: AlmConfig, tmp_path: Path) -> None:
    """The nightly schedule is paused. Switched on, and due every few seconds, it starts runs."""
    with loopback.client() as client:
        cache = client.read_deployment_by_name("alm/cache")
        (nightly,) = cache.schedules
        assert not nightly.active
        assert runs_of(loopback, "alm/cache") == []
        often = IntervalSchedule(interval=timedelta(seconds=10))
        client.update_deployment_schedule(
            cache.id, nightly.id, active=True, schedule=often, parameters=parameters(config, tmp_path)
        )
        loopback.worker("alm")
        wait_for("a scheduled run", lambda: any(run.state.is_completed() for run in runs_of(loopback, "alm/cache")))
        client.update_deployment_schedule(cache.id, nightly.id, active=False)
    wait_for("their end", lambda: all(run.state.is_final() for run in runs_of(loopback, "alm/cache")))
    assert all(run.auto_scheduled for run in runs_of(loopback, "alm/cache"))
    assert any(tmp_path.glob("teacher_scores/*/manifest.json"))


def test_a_completed_cache_is_distilled(loopback: Loopback, config: AlmConfig, tmp_path: Path) -> None:
    """With the same parameters."""
    loopback.done("deploy", "--name", "distill", "--trigger", str(FILES / "distill-after-cache.yaml"))
    loopback.worker("alm")
    cache = loopback.run("alm/cache", **parameters(config, tmp_path))
    assert loopback.finished(cache).is_completed(), loopback.logs()
    wait_for("a run of alm/distill", lambda: bool(runs_of(loopback, "alm/distill")))
    (run,) = runs_of(loopback, "alm/distill")
    assert run.parameters == {**parameters(config, tmp_path), "until": "student"}
    state = loopback.finished(run.id)
    assert state.is_completed(), f"{state.message}\n{loopback.logs()}"
    assert any(tmp_path.glob("students/*/manifest.json"))


def test_a_failure_sends_a_message(loopback: Loopback, tmp_path: Path, messages: tuple[str, list[str]]) -> None:
    url, received = messages
    block = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook\n"
        f"hook = Hook(name='hook', url={url!r}, json_data={{'text': '{{{{subject}}}} {{{{body}}}}'}})\n"
        "print(hook.save('alm-failures'))"
    )
    saved = subprocess.run(
        [sys.executable, "-c", block], env=loopback.environment, capture_output=True, text=True, check=False
    )
    assert saved.returncode == 0, saved.stderr
    file = edited("notify-failure.yaml", tmp_path, "00000000-0000-0000-0000-000000000000", saved.stdout.strip())
    loopback.done("automation", "create", "--from-file", file)
    loopback.worker("alm")
    run = loopback.run("verify/verify", storage=str(tmp_path / "nowhere"))
    assert loopback.finished(run).is_failed()
    wait_for("the message", lambda: bool(received))
    assert "verify/verify failed" in received[0]
    assert f"runs/flow-run/{run}" in received[0]


def test_a_run_that_died_with_its_worker_is_marked_crashed(
    loopback: Loopback, config: AlmConfig, tmp_path: Path
) -> None:
    """After ten seconds without a heartbeat instead of 90. A run sends one when it starts."""
    file = edited("crash-zombies.yaml", tmp_path, "within: 90", "within: 10")
    loopback.done("automation", "create", "--from-file", file)
    worker = loopback.worker("alm")
    run = loopback.run("alm/distill", **parameters(config, tmp_path))
    wait_for("a heartbeat", lambda: has_sent_heartbeat(loopback, run), between=0.1)
    loopback.kill(worker)
    state = loopback.finished(run)
    assert state.is_crashed()
    assert state.message.startswith("No heartbeat")
    assert not any(tmp_path.glob("students/*/manifest.json"))


def has_sent_heartbeat(loopback: Loopback, run: Any) -> bool:
    beats = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
    }
    answer = httpx.post(f"{loopback.url}/events/filter", json={"filter": beats}, timeout=60).raise_for_status()
    return bool(answer.json()["events"])


def test_runs_send_heartbeats_often_enough(loopback: Loopback) -> None:
    within = yaml.safe_load((FILES / "crash-zombies.yaml").read_text())["trigger"]["within"]
    with loopback.client() as client:
        for deployment in client.read_deployments():
            assert "alm" in deployment.tags
            assert 3 * int(deployment.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) <= within
