"""A whole run on a URL with a password and a signature: no byte that it writes, and no command line, holds them."""

import base64
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from alm_pipeline.config import AlmConfig, FilesSource
from flows.alm import alm
from flows.execution.inert_run import masked_errors
from storage.errors import UserError
from storage.urls import open_filesystem
from tests.flows.loopback import ROOT

USER, PASSWORD, SIGNATURES = "wAlter17", "hUnter2@/x:%z", ("Qk9hY3VyZQ+/a1==", "Zm9ydHktdHdv+/b2==")


class SignedFile:
    """A file on a real HTTP server, which answers 403 to any other password or signature."""

    def __init__(self, content: bytes) -> None:
        self.content, self.signatures = content, set(SIGNATURES)
        file = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                if self._answer():
                    self.wfile.write(file.content)

            def _answer(self) -> bool:
                login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                query = parse_qs(urlsplit(self.path).query)
                known = self.headers.get("Authorization") == f"Basic {login}"
                allowed = known and query.get("sig", [""])[0] in file.signatures
                self.send_response(200 if allowed else 403)
                self.send_header("Content-Length", str(len(file.content) if allowed else 0))
                self.send_header("ETag", f'"{hashlib.md5(file.content).hexdigest()}"')
                self.end_headers()
                return allowed

            def log_message(self, format: str, *arguments: Any) -> None:
                """Keep the log of tests quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, signature: str) -> str:
        login = f"{USER}:{quote(PASSWORD, safe='')}"
        host = f"127.0.0.1:{self.server.server_port}"
        return f"http://{login}@{host}/data/documents.jsonl?se=2030&sig={quote(signature, safe='')}"


@pytest.fixture(scope="module")
def signed(corpus_url: str) -> Iterator[SignedFile]:
    file = SignedFile(Path(corpus_url).read_bytes())
    yield file
    file.server.shutdown()
    file.server.server_close()


def spellings() -> dict[bytes, str]:
    """Every way to write a secret, also cut out of a longer base64 text."""
    secrets = {"user": USER, "password": PASSWORD, "first signature": SIGNATURES[0], "second signature": SIGNATURES[1]}
    forms: dict[bytes, str] = {}
    for name, secret in secrets.items():
        for text in (secret, quote(secret), quote(secret, safe=""), quote(quote(secret, safe="")), repr(secret)[1:-1]):
            forms[text.encode()] = name
        forms |= {base64.b64encode(b"x" * shift + secret.encode())[4:-4]: name for shift in range(3)}
    return forms | {base64.b64encode(f"{USER}:{PASSWORD}".encode()): "login"}


def leaks(content: bytes) -> list[str]:
    return sorted({name for form, name in spellings().items() if form in content})


def contents(file: Path) -> Iterator[bytes]:
    """The bytes of a file, and the values of a Parquet file or a database."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        yield repr([column.to_pylist() for column in table.columns]).encode()
        yield repr(table.schema.metadata).encode()
    if file.suffix == ".db":
        with sqlite3.connect(file) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in tables:
                yield repr(database.execute(f'SELECT * FROM "{name}"').fetchall()).encode()


def leaking_files(folder: Path) -> dict[str, list[str]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    found = {str(file): sorted({name for part in contents(file) for name in leaks(part)}) for file in files}
    names = {f"name of {file}": leaks(str(file).encode()) for file in files}
    return {file: secrets for file, secrets in {**found, **names}.items() if secrets}


class _Watch(threading.Thread):
    """Looks at the command lines of a process's descendants and at its temporary files until it ends."""

    def __init__(self, pid: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.pid, self.folder, self.found, self.seen = pid, folder, set[str](), set[str]()

    def run(self) -> None:
        while psutil.pid_exists(self.pid):
            try:
                for process in psutil.Process(self.pid).children(recursive=True):
                    line = " ".join(process.cmdline())
                    self.seen.add(line)
                    self.found.update(leaks(line.encode()))
                for file in self.folder.rglob("*.json"):
                    self.found.update(leaks(file.read_bytes()))
            except (psutil.Error, OSError):
                continue
            time.sleep(0.05)


def run(home: Path, config: AlmConfig, url: str, storage: Path) -> tuple["subprocess.Popen[bytes]", bytes, _Watch]:
    """Run `alm run` with a home of its own, and return its process, its output and what was seen meanwhile."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    settings = home.parent / "settings"  # the user's own file, which holds the secrets
    settings.mkdir(exist_ok=True)
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(url,))})
    train = config.train.model_copy(update={"processes": 2, "accumulation": 2, "steps": 2})
    content = config.model_copy(update={"corpus": corpus, "train": train}).model_dump(mode="json")
    (settings / "mine.yaml").write_text(yaml.safe_dump(content))
    command = (sys.executable, "-m", "alm_pipeline", "run", str(settings / "mine.yaml"), "--storage", str(storage))
    own = {name: str(home / name) for name in ("HOME", "PREFECT_HOME", "ALM_CACHE", "HF_HOME", "XDG_CACHE_HOME")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment |= own | {"TMPDIR": str(home / "tmp"), "PYTHONPATH": str(ROOT)}
    environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "300"  # on a busy machine
    process = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    watch = _Watch(process.pid, home / "tmp")
    watch.start()
    output, _ = process.communicate()
    return process, output, watch


@pytest.mark.flow
@pytest.mark.bad_input
@pytest.mark.timeout(900)
def test_a_whole_run_writes_no_secret_and_the_next_signature_finds_its_caches(
    signed: SignedFile, config: AlmConfig, tmp_path: Path
) -> None:
    home, store = tmp_path / "home", tmp_path / "home" / "store"
    process, output, watch = run(home, config, signed.url(SIGNATURES[0]), store)
    assert process.returncode == 0, output.decode()
    assert any("training_process" in line for line in watch.seen)
    assert watch.found == set()
    assert leaks(output) == []
    assert leaking_files(home) == {}
    assert (home / "PREFECT_HOME" / "prefect.db").stat().st_size > 10_000
    ids = [pq.read_table(file)["id"].to_pylist() for file in sorted(store.glob("examples/*/*.parquet"))]
    assert ids[0][0] == "documents.jsonl:0"
    (card,) = store.glob("students/*/README.md")
    assert "http://***@127.0.0.1" in card.read_text()

    before = {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()}
    process, output, _ = run(home, config, signed.url(SIGNATURES[1]), store)
    assert process.returncode == 0, output.decode()
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()} == before
    assert leaks(output) == []

    signed.signatures.clear()
    try:
        process, output, _ = run(home, config, signed.url(SIGNATURES[0]), tmp_path / "home" / "other")
    finally:
        signed.signatures.update(SIGNATURES)
    assert process.returncode == 1
    assert b"Traceback" not in output
    assert b"documents.jsonl?se=***&sig=***" in output
    assert leaks(output) == []
    assert leaking_files(home) == {}


@pytest.mark.bad_input
def test_errors_of_a_library_leave_a_stage_without_secrets(signed: SignedFile) -> None:
    """aiohttp's error holds the request with its URL and its Authorization header."""
    fs, path = open_filesystem(signed.url("wrong"))
    with pytest.raises(Exception, match="403") as raised, masked_errors():
        fs.cat_file(path)
    assert type(raised.value).__name__ == "ClientResponseError"
    text = f"{raised.value} {raised.value!r} {raised.value.__notes__ if hasattr(raised.value, '__notes__') else ''}"
    assert leaks(text.encode()) == []
    assert "***" in text


def test_variables_in_a_url_are_put_in_when_it_is_opened(
    signed: SignedFile, monkeypatch: pytest.MonkeyPatch, config: AlmConfig
) -> None:
    host = f"127.0.0.1:{signed.server.server_port}"
    url = f"http://${{LOGIN}}@{host}/data/documents.jsonl?sig=${{SIGNATURE}}"
    monkeypatch.setenv("LOGIN", f"{USER}:{quote(PASSWORD, safe='')}")
    monkeypatch.setenv("SIGNATURE", quote(SIGNATURES[0], safe=""))
    fs, path = open_filesystem(url)
    assert fs.cat_file(path) == signed.content
    monkeypatch.delenv("SIGNATURE")
    with pytest.raises(UserError, match="the environment variable SIGNATURE is not set"):
        open_filesystem(url)


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.bad_input
def test_a_gpu_pool_is_not_sent_a_secret(config: AlmConfig, tmp_path: Path, signed: SignedFile) -> None:
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(signed.url(SIGNATURES[0]),))})
    with pytest.raises(UserError, match=r"gpu_pool gpu: a URL with a password or signature.*\$\{NAME\}") as raised:
        alm(config=config.model_copy(update={"corpus": corpus}), storage=str(tmp_path), gpu_pool="gpu")
    assert leaks(str(raised.value).encode()) == []


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.bad_input
def test_a_deployments_run_with_a_secret_is_refused(tmp_path: Path, signed: SignedFile) -> None:
    """The server has stored the parameters before the run begins."""
    parameters = {"corpus": signed.url(SIGNATURES[0]), "storage": str(tmp_path)}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(flow_id=client.create_flow(alm), name="signed")
        flow_run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    with pytest.raises(UserError, match=r"which the server has stored: write \$\{NAME\}"):
        run_flow(alm, flow_run=flow_run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.bad_input
def test_parameters_that_are_refused_are_stored_without_secrets(signed: SignedFile) -> None:
    with pytest.raises(Exception, match="teacher") as raised:
        alm(teacher=[signed.url(SIGNATURES[0])], storage=signed.url(SIGNATURES[0]))  # type: ignore[call-overload]
    assert leaks(str(raised.value).encode()) == []
    with get_client(sync_client=True) as client:
        stored = [run for run in client.read_flow_runs() if "***" in str(run.parameters)]
    assert stored
    assert [run for run in stored if leaks(run.model_dump_json().encode())] == []
