"""A storage root from a Prefect block needs no credentials in the environment, parameters or logs."""

import fsspec
import pytest
import s3fs
from prefect.filesystems import RemoteFileSystem

from flows.storage_block import storage_root
from storage.errors import UserError
from storage.urls import publish, read_bytes
from tests.storage.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, environment

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def test_a_blocks_settings_open_its_root(s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment(s3_server.endpoint):
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    s3fs.S3FileSystem.clear_instance_cache()
    settings = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": s3_server.endpoint}
    RemoteFileSystem(basepath=f"{s3_root}/", settings=settings).save("bucket", overwrite=True)
    root = storage_root("block:bucket/student-a")
    assert root == f"{s3_root}/student-a"
    assert storage_root("block:bucket") == s3_root
    publish(f"{root}/file", b"content")
    assert read_bytes(f"{root}/file") == b"content"
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_block_is_named() -> None:
    with pytest.raises(UserError, match="block:none: there is no block remote-file-system/none: create it"):
        storage_root("block:none")


def test_anything_else_is_returned_unchanged() -> None:
    assert storage_root("s3://bucket/prefix") == "s3://bucket/prefix"
