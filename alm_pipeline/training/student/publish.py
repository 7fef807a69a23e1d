"""Pushing a finished student to the Hugging Face hub, or to another server with its API (HF_ENDPOINT)."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from alm_pipeline.models.files import first_line
from alm_pipeline.models.hub import is_network_error
from alm_pipeline.training.student.model_card import CARD, card_for
from storage.errors import UserError
from storage.folders import StoredFolder, load_folder_manifest
from storage.urls import absolute_url


def push(student: StoredFolder, repo: str, private: bool = True, api: HfApi | None = None) -> str:
    """Upload a finished student's files to a model repository, made where it is not there yet; returns its URL.

    What goes are the files that its manifest lists, and not the manifest, which has paths of this machine. Files that
    the repository has already are not sent again. The token is the environment's (HF_TOKEN, or `hf auth login`).
    Raises UserError when the student is not finished, or the hub refuses.
    """
    folder = student.fetch()
    manifest = student.manifest()
    assert manifest is not None
    try:
        return _upload(api or HfApi(), folder, sorted(manifest.files), repo, private)
    except HFValidationError as error:
        raise UserError(f"{repo}: is no repository's name: write USER/NAME ({first_line(error)})") from error
    except (LocalTokenNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise UserError(_refusal(student, repo, error)) from error
    except Exception as error:
        if not is_network_error(error):
            raise
        raise UserError(_refusal(student, repo, error)) from error


def stored_student(url: str) -> StoredFolder:
    """The finished student at a URL. Raises UserError where there is none."""
    root, kind, name = absolute_url(url).rsplit("/", 2)
    manifest = load_folder_manifest(url) if kind == "students" else None
    if manifest is None:
        raise UserError(f"{url}: is no finished student's folder; `alm list ROOT` says what there is")
    return StoredFolder(root, "students", name.rpartition("-")[0], manifest.identity, provenance=manifest.provenance)


def _upload(api: HfApi, folder: Path, files: list[str], repo: str, private: bool) -> str:
    created = api.create_repo(repo, private=private, exist_ok=True)
    message = "A student of alm-pipeline"
    # the names are no patterns, but none of those that a model's folder has holds a character special to them
    api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        allow_patterns=[file for file in files if file != CARD],
        commit_message=message,
    )
    if CARD in files:
        content = card_for(folder, repo).encode()
        api.upload_file(path_or_fileobj=content, path_in_repo=CARD, repo_id=repo, commit_message=message)
    return str(created)


def _refusal(student: StoredFolder, repo: str, error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    mend = {
        401: "set HF_TOKEN to a token that may write, or `hf auth login`",
        403: "the token may not write there: use one that may, or a repository of your own",
    }.get(status, "mend that")  # type: ignore[arg-type]
    return (
        f"{repo}: the hub did not take the student ({first_line(error)}). It is finished, in {student.url}: "
        f"{mend}, and run again or `alm push {student.url} {repo}`; nothing is trained again"
    )
