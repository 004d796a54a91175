"""What is on the Hub now: the repository, its files, and whether we may write to it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dualign.errors import PublishError
from dualign.hashing import sha256
from dualign.publish.hub.client import HUB_ERRORS, hub_api, refusal, status_of, with_retries

CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on the Hub. `sha256` is that of a large file; `blob` is git's SHA-1 of the others."""

    size: int
    blob: str
    sha256: str | None

    def is_copy_of(self, path: Path) -> bool:
        """Whether the local file has the same bytes."""
        size = path.stat().st_size
        if size != self.size:
            return False
        if self.sha256:
            return sha256(path) == self.sha256
        with path.open("rb") as handle:
            return hashlib.sha1(b"blob %d\0" % size + handle.read()).hexdigest() == self.blob


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteState:
    """A repository as it is. Where there is none, `private` and `head` are None and `files` is empty."""

    repo_id: str
    user: str  # whose token it is
    exists: bool
    writable: bool
    private: bool | None = None
    head: str | None = None  # the commit that all of this was read at
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    card: str | None = None  # README.md


def remote_state(repo_id: str) -> RemoteState:
    """The repository as it is on the Hub now.

    Raises:
        PublishError: the name can't be one, there is no token or an unknown one, or the Hub can't be reached.
    """
    _check_name(repo_id)
    api = hub_api()
    try:
        _check_token()
        who = with_retries(lambda: api.whoami(cache=True), pauses=(1, 2))
        try:
            info = with_retries(lambda: api.model_info(repo_id))
        except RepositoryNotFoundError:
            mine = (who["name"], *(org["name"] for org in who.get("orgs", ())))
            writable = repo_id.split("/")[0] in mine and _role(who) != "read"
            return RemoteState(repo_id=repo_id, user=who["name"], exists=False, writable=writable)
        files = files_at(api, repo_id, info.sha)
        return RemoteState(
            repo_id=repo_id,
            user=who["name"],
            exists=True,
            writable=_may_write(api, repo_id),
            private=bool(info.private),
            head=info.sha,
            files=files,
            card=_text(api, repo_id, info.sha) if CARD in files else None,
        )
    except HUB_ERRORS as error:
        raise refusal(error, repo_id, "looking at it") from None


def files_at(api: HfApi, repo_id: str, revision: str | None) -> dict[str, RemoteFile]:
    """Path -> file, of one commit."""
    tree = api.list_repo_tree(repo_id, revision=revision, recursive=True)
    return {
        one.path: RemoteFile(
            size=one.size, blob=one.blob_id, sha256=one.lfs.sha256 if one.lfs else None
        )
        for one in tree
        if isinstance(one, RepoFile)
    }


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id}: not a repository's name: {error}") from None
    if "/" not in repo_id:
        raise PublishError(
            f"{repo_id}: say whose it is: NAME/{repo_id}, where NAME is your name on the Hub or an organization's"
        )


def _check_token() -> None:
    if not get_token():
        raise PublishError(
            f"no token for the Hub: run `hf auth login`, or set HF_TOKEN to one that may write ({constants.ENDPOINT}/settings/tokens)"
        )


def _role(who: Mapping[str, object]) -> object:
    auth = who.get("auth")
    token = auth.get("accessToken") if isinstance(auth, Mapping) else None
    return token.get("role") if isinstance(token, Mapping) else None


def _may_write(api: HfApi, repo_id: str) -> bool:
    try:
        with_retries(lambda: api.auth_check(repo_id, write=True))
    except HUB_ERRORS as error:
        if status_of(error) in (401, 403, 404):
            return False
        raise
    return True


def _text(api: HfApi, repo_id: str, revision: str | None) -> str:
    """README.md, past the cache: it is small, and the user's cache shouldn't fill with cards."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder)
        return Path(path).read_text(encoding="utf-8")
