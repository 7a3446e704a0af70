"""The Hugging Face Hub, through its own library, an optional extra: repositories down, folders up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from spela.pretrained.folder import CARD, CONFIG, WEIGHTS

__all__ = ["download", "has_card", "is_repo_id", "make_repo", "upload"]


def is_repo_id(name: str) -> bool:
    """Whether a text may name a repository: owner/name.

    Example:
        >>> is_repo_id("me/digits"), is_repo_id("./runs/digits"), is_repo_id("digits")
        (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def _library(wanted: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{wanted} needs huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What the library and its clients raise, as one ValueError."""
    try:
        yield
    except Exception as error:  # of several libraries, some without a common base
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"cannot {what}: {reason}") from error


def download(repo_id: str, **settings: Any) -> Path:
    """A folder with a repository's config.json and model.safetensors, of one revision.

    Args:
        repo_id: owner/name.
        **settings: Of `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: If the library is not installed, or the files are neither there nor in its cache.
    """
    library = _library(f"{repo_id!r} is no folder here, and loading it from the Hub")
    with _one_line(f"load {repo_id!r}, which is no folder here, from the Hub"):
        wanted = [CONFIG, WEIGHTS]
        return Path(library.snapshot_download(repo_id, allow_patterns=wanted, **settings))


def make_repo(repo_id: str, private: bool | None, token: str | bool | None) -> str:
    """Make a repository if there is none yet; its full name.

    Raises:
        ValueError: If the library is not installed, or the Hub refuses.
    """
    api = _library("push_to_hub").HfApi()
    with _one_line(f"make the repository {repo_id!r} on the Hub"):
        made = api.create_repo(repo_id, private=private, token=token, exist_ok=True)
        return str(made.repo_id)


def has_card(repo_id: str, token: str | bool | None) -> bool:
    """Whether a repository has a README.md.

    Raises:
        ValueError: If the Hub does not say.
    """
    api = _library("push_to_hub").HfApi()
    with _one_line(f"look into {repo_id!r} on the Hub"):
        return bool(api.file_exists(repo_id, CARD, token=token))


def upload(folder: Path, repo_id: str, message: str, token: str | bool | None) -> str:
    """Upload a folder's files in one commit; the address of that.

    Raises:
        ValueError: If the Hub refuses.
    """
    api = _library("push_to_hub").HfApi()
    with _one_line(f"upload to {repo_id!r}"):
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, token=token
        )
        return str(done.commit_url)
