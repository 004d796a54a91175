"""The state of a repository on the Hub: its files, its card, and whether we may write to it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dualign.errors import PublishError
from dualign.hashing import sha256
from dualign.publish.hub.client import HUB_ERRORS, hub_api, refusal, status_of, with_retries

CARD = "README.md"
RepoKind = Literal["model", "dataset"]
Gated = Literal["auto", "manual"]
_READING = ("read", "no_access")  # roles in an organization that may not write


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on the Hub. `sha256` is set for large files; `blob` is git's SHA-1 of the others."""

    size: int
    blob: str
    sha256: str | None

    def is_copy_of(self, path: Path) -> bool:
        """True if the local file has the same bytes."""
        size = path.stat().st_size
        if size != self.size:
            return False
        if self.sha256:
            return sha256(path) == self.sha256
        with path.open("rb") as handle:
            return hashlib.sha1(b"blob %d\0" % size + handle.read()).hexdigest() == self.blob


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteState:
    """A repository at a commit. A missing one has no `private` and `head`, and no `files`."""

    repo_id: str
    user: str  # the owner of the token
    exists: bool
    writable: bool
    kind: RepoKind = "model"
    role: str = ""
    """of the user in the organization that owns it, if they are in it and may not write"""
    private: bool | None = None
    gated: Gated | None = None
    """how access to its files is given, if it has to be asked for"""
    head: str | None = None  # the commit
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    card: str | None = None  # README.md

    @property
    def url(self) -> str:
        """Where people see it."""
        return repo_url(self.repo_id, self.kind)


def repo_url(repo_id: str, kind: RepoKind) -> str:
    """Return the address of a repository's page."""
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def remote_state(repo_id: str, *, kind: RepoKind = "model") -> RemoteState:
    """Read the repository as it is on the Hub now.

    Raises:
        PublishError: the name is invalid, the token is missing or unknown, or the Hub is out of
            reach.
    """
    _check_name(repo_id)
    api = hub_api()
    try:
        _check_token()
        user = with_retries(lambda: api.whoami(cache=True), pauses=(1, 2))
        try:
            info = with_retries(lambda: api.repo_info(repo_id, repo_type=kind))
        except RepositoryNotFoundError:
            owner = repo_id.split("/")[0]
            role = _role_in(user, owner)
            member = owner == user["name"] or (bool(role) and role not in _READING)
            return RemoteState(
                repo_id=repo_id,
                user=user["name"],
                exists=False,
                writable=member and _role(user) != "read",
                kind=kind,
                role=role if role in _READING else "",
            )
        files = files_at(api, repo_id, info.sha, kind)
        return RemoteState(
            repo_id=repo_id,
            user=user["name"],
            exists=True,
            writable=_may_write(api, repo_id, kind),
            kind=kind,
            private=bool(info.private),
            role=role if (role := _role_in(user, repo_id.split("/")[0])) in _READING else "",
            gated=info.gated or None,
            head=info.sha,
            files=files,
            card=_text(api, repo_id, info.sha, kind) if CARD in files else None,
        )
    except HUB_ERRORS as error:
        raise refusal(error, repo_id, "looking at it") from None


def files_at(
    api: HfApi, repo_id: str, revision: str | None, kind: RepoKind = "model"
) -> dict[str, RemoteFile]:
    """Return {path: file} of a commit."""
    tree = api.list_repo_tree(repo_id, revision=revision, recursive=True, repo_type=kind)
    return {
        file.path: RemoteFile(
            size=file.size, blob=file.blob_id, sha256=file.lfs.sha256 if file.lfs else None
        )
        for file in tree
        if isinstance(file, RepoFile)
    }


def read_text(state: RemoteState, name: str) -> str:
    """Return a text file of the repository.

    Raises:
        PublishError: the Hub doesn't give it.
    """
    try:
        return _text(hub_api(), state.repo_id, state.head, state.kind, name)
    except HUB_ERRORS as error:
        raise refusal(error, state.repo_id, f"reading {name}") from None


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


def _role(user: Mapping[str, object]) -> object:
    auth = user.get("auth")
    token = auth.get("accessToken") if isinstance(auth, Mapping) else None
    return token.get("role") if isinstance(token, Mapping) else None


def _role_in(user: Mapping[str, Any], organization: str) -> str:
    """Return the user's role in an organization; "" if they aren't in it, or it isn't told."""
    roles = {org["name"]: org.get("roleInOrg") or "write" for org in user.get("orgs", ())}
    return str(roles.get(organization, ""))


def no_right(state: RemoteState) -> str:
    """Say why a repository can't be written to, and what to do."""
    owner = state.repo_id.split("/")[0]
    others = " open a pull request (--pr)," if state.exists and owner != state.user else ""
    if state.role:
        return (
            f"{state.user}'s role in {owner} is {state.role}: ask an admin of {owner} for write,{others} "
            f"or publish under {state.user}/"
        )
    return (
        f"{state.user}'s token may not write to {state.repo_id}: take one that may from "
        f"{constants.ENDPOINT}/settings/tokens,{others} or publish under {state.user}/"
    )


def _may_write(api: HfApi, repo_id: str, kind: RepoKind) -> bool:
    try:
        with_retries(lambda: api.auth_check(repo_id, write=True, repo_type=kind))
    except HUB_ERRORS as error:
        if status_of(error) in (401, 403, 404):
            return False
        raise
    return True


def _text(api: HfApi, repo_id: str, revision: str | None, kind: RepoKind, name: str = CARD) -> str:
    """Read a file without the user's cache, which shouldn't fill with cards."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(
            repo_id, name, revision=revision, local_dir=folder, repo_type=kind
        )
        return Path(path).read_text(encoding="utf-8")
