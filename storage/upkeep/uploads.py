"""Multipart uploads to S3 that were never completed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storage.urls import modified_time, naming_errors, open_filesystem, protocol_of


@dataclass(frozen=True)
class InterruptedUpload:
    """A multipart upload to S3 that was never completed: it is not listed, but costs money."""

    url: str
    id: str
    bytes: int
    modified: float | None


def interrupted_uploads(url: str) -> list[InterruptedUpload]:
    """List the incomplete uploads of files below a folder; empty for stores other than S3."""
    fs, path = open_filesystem(url)
    if not hasattr(fs, "call_s3"):
        return []
    bucket, prefix, _ = fs.split_path(path)
    with naming_errors(url, "listed"):
        uploads = list(_uploads(fs, bucket, f"{prefix}/" if prefix else ""))
        return [
            InterruptedUpload(
                f"{protocol_of(url)}://{bucket}/{upload['Key']}",
                upload["UploadId"],
                _uploaded_bytes(fs, bucket, upload),
                modified_time({"created": upload.get("Initiated")}),
            )
            for upload in uploads
        ]


def _uploads(fs: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    page: dict[str, Any] = {"IsTruncated": True}
    before = None
    while page.get("IsTruncated"):
        after = {key: page[f"Next{key}"] for key in ("KeyMarker", "UploadIdMarker") if page.get(f"Next{key}")}
        if after == before:  # a server whose pages do not advance would be asked for ever
            return
        before = after
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        yield from page.get("Uploads", [])


def _uploaded_bytes(fs: Any, bucket: str, upload: Mapping[str, Any]) -> int:
    # only the first 1,000 parts: this number is only shown to people
    parts = fs.call_s3("list_parts", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return sum(part["Size"] for part in parts.get("Parts", []))


def abort_upload(upload: InterruptedUpload) -> None:
    """Remove the parts of an incomplete upload from the store."""
    fs, path = open_filesystem(upload.url)
    bucket, key, _ = fs.split_path(path)
    with naming_errors(upload.url, "removed"):
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)
