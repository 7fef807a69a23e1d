"""Pushes a finished student to the Hugging Face Hub, or to another server with its API (HF_ENDPOINT)."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from alm_pipeline.models.hub import is_network_error
from alm_pipeline.training.student.model_card import CARD, card_for
from storage.errors import UserError, cause
from storage.folders import StoredFolder, load_folder_manifest
from storage.urls import absolute_url


def push(student: StoredFolder, repo: str, private: bool = True, api: HfApi | None = None) -> str:
    """Upload a finished student's files to a model repository, which is created if necessary. Returns its URL.

    The files are those that the manifest lists, without the manifest itself, which contains paths of this machine.
    Files that the repository already has are not sent again. The token comes from HF_TOKEN or `hf auth login`. Raises
    UserError if the student is not finished, or the Hub refuses the upload.
    """
    folder = student.fetch()
    manifest = student.manifest()
    assert manifest is not None
    try:
        return _upload(api or HfApi(), folder, sorted(manifest.files), repo, private)
    except HFValidationError as error:
        raise UserError(f"{repo} is not a valid repository name: write USER/NAME ({cause(error)})") from error
    except (LocalTokenNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise UserError(_refusal(student, repo, error)) from error
    except Exception as error:
        if not is_network_error(error):
            raise
        raise UserError(_refusal(student, repo, error)) from error


def stored_student(url: str) -> StoredFolder:
    """Return the finished student at a URL. Raises UserError if there is none."""
    root, kind, name = absolute_url(url).rsplit("/", 2)
    manifest = load_folder_manifest(url) if kind == "students" else None
    if manifest is None:
        raise UserError(f"{url} is not the folder of a finished student; `alm list ROOT` lists the students")
    return StoredFolder(root, "students", name.rpartition("-")[0], manifest.identity, provenance=manifest.provenance)


def _upload(api: HfApi, folder: Path, files: list[str], repo: str, private: bool) -> str:
    created = api.create_repo(repo, private=private, exist_ok=True)
    message = "A student of alm-pipeline"
    # names are used as patterns: no file of a model folder has a special character in its name
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
    fix = {
        401: "set HF_TOKEN to a token with write access, or use `hf auth login`",
        403: "the token has no write access there: use one that has, or a repository of your own",
    }.get(status, "solve this")  # type: ignore[arg-type]
    return (
        f"{repo}: the Hub refused the student ({cause(error)}). The student is finished, in {student.url}: "
        f"{fix}, and run again or `alm push {student.url} {repo}`; nothing is trained again"
    )
