"""Exported models on a hub and back: huggingface.co, or wherever HF_ENDPOINT says.

What is fetched are the files of `run.portable` and no others, and each is compared with the digest
that the model's config.json tells; none of them is code.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxgen import files
from jaxgen.errors import UsageError, invalid
from jaxgen.run import portable
from jaxgen.training.log import say

PREFIX = "hf://"
_ID = r"[\w.-]+/[\w.-]+"
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Packages whose errors are of the network, in the versions of the hub's library."""


def names(place: Any) -> bool:
    """Whether a place is a model on the hub: hf://OWNER/NAME, or with @REVISION."""
    return isinstance(place, str) and place.startswith(PREFIX)


def repository(option: str, place: str) -> tuple[str, str | None]:
    """(OWNER/NAME, revision) of what names a model on the hub. Raises UsageError."""
    name, _, revision = place.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(_ID, name) or ("@" in place and not revision):
        raise invalid(option, place, "OWNER/NAME, or OWNER/NAME@REVISION, of a model on the hub")
    return name, revision or None


def cached(place: str) -> Path:
    """The folder of a model of the hub in the hub's own cache, fetched if needed, and verified."""
    name, revision = repository("--workdir", place)
    with _answered("--workdir", place) as hub:
        found = hub.snapshot_download(
            name, revision=revision, allow_patterns=list(portable.PATTERNS)
        )
    _whole("--workdir", place, Path(found))
    return Path(found)


def pull(place: str, out: Path) -> dict[str, Any]:
    """Fetch a model into a new folder; returns what it says of itself (`portable.about`).

    Raises UsageError where it does not exist, cannot be reached, or is not what was exported: then
    nothing is written.
    """
    name, revision = repository("--repo", place)
    portable.check_new("--out", out)
    files.folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pull") as home:
        folder = Path(home) / "model"
        folder.mkdir()
        with _answered("--repo", place) as hub:
            hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(portable.PATTERNS),
                local_dir=folder,
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub's own notes
        said = _whole("--repo", place, folder)
        portable.move(folder, out)
    return said


def push(folder: Path, place: str, *, private: bool = False) -> str:
    """Send an exported folder to the hub, as one commit; returns its address there.

    The model is made where there is none. Raises UsageError for what the hub refuses.
    """
    name, revision = repository("--repo", place)
    portable.verify(folder)
    with _answered("--repo", place) as hub:
        api = hub.HfApi()
        api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=name,
            revision=revision,
            folder_path=folder,
            commit_message="Model exported by jaxgen",
            allow_patterns=list(portable.PATTERNS),
            # What an earlier version had and this one has not.
            delete_patterns=["receipts/*", "samples/*", f"{portable.TOKENIZER}/*"],
        )
    say(f"{folder} -> {sent}")
    return str(sent)


def _whole(option: str, place: str, folder: Path) -> dict[str, Any]:
    """What a fetched folder says of itself, verified. UsageError for any other kind of model."""
    if not portable.is_one(folder) or not (folder / portable.CONFIG).is_file():
        allowed = f"a model that jaxgen exported: with {portable.CONFIG} and {portable.FILE}"
        raise invalid(option, place, allowed)
    return portable.verify(folder)


@contextlib.contextmanager
def _answered(option: str, place: str) -> Iterator[ModuleType]:
    """The hub's library; its errors as one message."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UsageError(
            f'{option}: got {place!r}; models on a hub need pip install "jaxgen[hub]".'
        ) from error
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        yield hub
    except errors.RepositoryNotFoundError as error:
        fix = "A private one needs `hf auth login`, or HF_TOKEN."
        raise invalid(option, place, f"a model that there is on {where}", fix) from error
    except errors.RevisionNotFoundError as error:
        raise invalid(option, place, "a branch, tag or commit of this model") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        fix = " Log in: `hf auth login`, or HF_TOKEN." if code in (401, 403) else ""
        why = str(error).strip().splitlines()[0]
        raise UsageError(f"{option}: {place}: {where} answered {code}: {why}{fix}") from error
    except Exception as error:
        offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError)
        transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
        if isinstance(error, UsageError) or not (isinstance(error, offline) or transport):
            raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{option}: {place}: {where} cannot be reached: {why}") from error
