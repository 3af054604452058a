"""Saving and loading of all models: folders that are whole, and repositories of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from reasonrec_fast.files import atomic_write_folder, read_consistent, read_json, write_json

CONFIG = "config.json"
"""Names the architecture, the format of the folder and the version of the package that wrote it."""

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "dataset/*")
"""What is read from a repository: settings, weights, trees and RecBole's events as text; nothing that could run."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Model = TypeVar("Model")


def save_folder(
    folder: str | Path,
    architecture: str,
    format: int,
    files: Collection[str],
    write: Callable[[Path], Mapping[str, Any]],
) -> None:
    """Write a model as a folder; one that is there already is replaced as a whole, or not at all.

    Args:
        folder: is made where it is not there; files of others in it stay.
        architecture, format: by which :func:`load_folder` knows it again.
        files: names of the files that a model of this kind may have, besides ``config.json``.
        write: writes them into the folder that it is given, and returns the settings.

    Raises:
        OSError: nothing can be written there.

    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_folder(f"{parent}/model", "constant", 1, (), lambda folder: {"value": 3})
    ...     load_folder(f"{parent}/model", "constant", 1, lambda folder, settings: settings["value"])
    3
    """
    from reasonrec_fast import __version__

    with atomic_write_folder(folder, (CONFIG, *files)) as temporary:
        settings = write(temporary)
        header = {"architecture": architecture, "format": format, "version": __version__}
        header["files"] = digests_of_files(temporary)
        write_json(temporary / CONFIG, {**header, **settings})


def load_folder(
    name: str | Path,
    architecture: str,
    format: int,
    read: Callable[[Path, dict[str, Any]], Model],
    *,
    what: str = "model",
    older: Mapping[int, str] | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Model:
    """Read a model: all of the files that one call of :func:`save_folder` wrote.

    Args:
        name: the folder, or a repository (see :func:`local_folder`).
        architecture, format: what the folder must hold.
        read: makes the model of the folder and its settings.
        what: the model in a word, for errors.
        older: earlier formats, and what to do about a model in one of them.
        revision, token: of the repository.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds another architecture or format, or files that do not belong together.
    """
    folder = local_folder(name, what=what, revision=revision, token=token)

    def checked() -> Model:
        settings = checked_settings(folder, architecture, format, what=what, older=older)
        check_files(folder, settings.get("files", {}))
        return read(folder, settings)

    return read_consistent(folder, checked)


def digests_of_files(folder: Path) -> dict[str, str]:
    """Path and digest (BLAKE2b, 32 hexadecimal digits) of every file in a folder, for :func:`check_files`; those of a
    model in a folder of its own within are among them, but no ``config.json``: whoever edits one (a language model was
    moved) is taken to mean it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CONFIG)
    return {path.relative_to(folder).as_posix(): _digest_of_file(path) for path in paths}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse parts of a saved model that are not those it was saved with; one that is missing is left to its reader.

    Args:
        folder: of the model.
        digests: what :func:`digests_of_files` gave when it was saved.

    Raises:
        ValueError: a file with another content (the message names it).

    >>> with tempfile.TemporaryDirectory() as name:
    ...     _ = Path(name, "a.txt").write_text("old")
    ...     digests = digests_of_files(Path(name))
    ...     check_files(Path(name), digests)
    ...     sorted(digests)
    ['a.txt']
    """
    for name, digest in digests.items():
        path = folder / name
        if path.is_file() and _digest_of_file(path) != digest:
            raise ValueError(f"{path}: expected the file that was saved with the model ({CONFIG}); it holds another")


def _digest_of_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_settings(folder: Path, what: str = "model") -> dict[str, Any]:
    """The content of ``config.json`` of a saved model of any architecture; empty where it holds something else.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"folder: expected a saved {what} with {CONFIG}; there is none in {folder}")
    stored = read_json(folder / CONFIG)
    return stored if isinstance(stored, dict) else {}


def checked_settings(
    folder: Path, architecture: str, format: int, *, what: str = "model", older: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """The settings of a folder that must hold an architecture in a format; the arguments are those of
    :func:`load_folder`.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds another architecture or format.
    """
    stored = read_settings(folder, what)
    if (stored.get("architecture"), stored.get("format")) != (architecture, format):
        article = "an" if architecture[0] in "aeiouAEIO" else "a"
        advice = (older or {}).get(stored.get("format", 0)) if stored.get("architecture") == architecture else None
        raise ValueError(
            f"folder: expected {article} {architecture} of format {format}; {folder} holds "
            f"{stored.get('architecture', stored.get('model_type'))!r} of format {stored.get('format')}"
            + (f" ({advice})" if advice else "")
        )
    return stored


def local_folder(
    name: str | Path, *, what: str = "model", revision: str | None = None, token: str | None = None
) -> Path:
    """Where a model lies on this machine; a repository of the hub is downloaded into its cache first.

    A folder that is there is taken before a repository of the same name. Of a repository only :data:`HUB_FILES` are
    fetched. A :class:`~pathlib.Path` is never a repository.

    Args:
        name: a folder, or ``"user/repository"``.
        what: the model in a word, for errors.
        revision: a branch, a tag or a commit of the repository; for repositories alone.
        token: for repositories that are private.

    Raises:
        FileNotFoundError: neither is there, or the hub cannot be asked (``HF_HUB_OFFLINE``) and the cache has none.
        ValueError: a revision of a folder.

    >>> local_folder(".").is_dir()
    True
    """
    folder = Path(name)
    if folder.exists() or not isinstance(name, str) or not _REPOSITORY.fullmatch(name):
        if revision is not None:
            raise ValueError(f"revision: expected None for a folder; got {revision!r} for {name}")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(HUB_FILES)))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        reason = "HF_HUB_OFFLINE is set, and its cache has none" if offline else " ".join(str(error).split())
        raise FileNotFoundError(
            f"folder: expected a saved {what} with {CONFIG}; there is none in {name}, nor on the hub: {reason}"
        ) from error


class PushToHub:
    """What a model with a ``save_pretrained(folder)`` needs to be pushed to the Hugging Face hub.

    ``huggingface_hub``'s own mixin is not used: it deletes ``config.json`` before it saves, so that a run that is
    killed then leaves no model, and hands what it holds to the constructor.
    """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a model of reasonrec_fast",
    ) -> str:
        """Save the model and upload its folder; files of an earlier model that this one does not have are deleted.

        Args:
            repo_id: ``"user/repository"``; made where it is not there.
            private: of a repository that is made. The folder of a recommender has the identifiers and the histories
                of its users.
            token: by default the one that ``hf auth login`` stored.
            revision: branch to push to; by default ``main``.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            ValueError: a name that is none of a repository.
        """
        from huggingface_hub import HfApi

        if not _REPOSITORY.fullmatch(repo_id):
            raise ValueError(f"repo_id: expected 'user/repository'; got {repo_id!r}")
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "model")
            self.save_pretrained(folder)  # type: ignore[attr-defined]
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                allow_patterns=list(HUB_FILES),
                delete_patterns=list(HUB_FILES),
            )
        return str(commit.commit_url)
