"""Upload staged files to a repository on the Hub: all of them in one commit, or none.

LFS files are uploaded first; they are invisible until the commit references them. The commit is one
request that names its parent, so if someone else commits meanwhile it fails and nothing is lost.
huggingface_hub's `upload_folder` isn't used: with Xet storage, its default, it commits in parts.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard

from dualign.errors import PublishError
from dualign.publish.hub.client import (
    HUB_ERRORS,
    HTTPError,
    hub_api,
    is_transient,
    refusal,
    with_retries,
)
from dualign.publish.hub.pull_requests import open_pull_request
from dualign.publish.hub.repository import (
    CARD,
    Gated,
    RemoteFile,
    RemoteState,
    RepoKind,
    files_at,
    no_right,
    remote_state,
    repo_url,
)

__all__ = ["Publication", "RemoteFile", "RemoteState", "remote_state", "upload"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A finished upload. `commit` has the files; it is an older one if nothing had changed."""

    url: str
    commit: str
    pull_request: bool = False
    """`url` is that of an open pull request, and `commit` its head"""
    collection: str | None = None
    """the address of the collection that the repository was added to"""
    collection_fault: str | None = None
    """why it couldn't be added; the upload stands"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The repository that is written to, in its state before the upload."""

    api: HfApi
    repo_id: str
    kind: RepoKind
    head: str
    files: frozenset[str]
    is_new: bool  # created for this upload


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    message: str,
    delete: tuple[str, ...] = (),
    head: str | None = None,
    kind: RepoKind = "model",
    gated: Gated | None = None,
    pull_request: bool = False,
) -> Publication:
    """Upload every file under `folder` and delete the files `delete`, in one commit.

    The repository is created if it is missing. Network failures are retried; large files that have
    arrived aren't sent twice, in a later call either.

    Args:
        head: the commit that the caller has seen; if it has changed, the upload is refused.
        gated: how access to the files of a new repository is given; None: everyone who sees it.
        pull_request: open a pull request instead of a commit, or return the one that has the files.

    Raises:
        PublishError: the upload failed. The repository has the files it had before; a new one is
            deleted again, or left empty if a second call would resume from it.
    """
    staged = _files(folder)
    state = remote_state(repo_id, kind=kind)
    _check(state, private=private, gated=gated, head=head, pull_request=pull_request)
    step = "checking the card"
    target = None
    try:
        _validate_card(staged, repo_id, kind)
        step = "making the repository"
        target = _target(state, private=private, gated=gated)
        additions = [CommitOperationAdd(name, path) for name, path in staged.items()]
        step = "sending the large files"
        # An empty .gitignore: one in the repository would leave out files without a word.
        target.api.preupload_lfs_files(
            repo_id,
            additions,
            repo_type=kind,
            free_memory=False,
            gitignore_content="",
            create_pr=pull_request,
        )
        step = "committing"
        deletions = [CommitOperationDelete(name) for name in delete if name in target.files]
        if pull_request:
            step = "opening the pull request"
            return _open(target, [*additions, *deletions], staged, message, state.user)
        commit = _commit(target, [*additions, *deletions], staged, message)
    except PublishError:
        raise
    except HUB_ERRORS as error:
        refused = refusal(error, repo_id, step)
        if target is not None:
            refused = PublishError(f"{refused}. {_roll_back(target, error)}")
        raise refused from None
    except BaseException as error:
        if target is not None:
            logger.warning("%s: %s", repo_id, _roll_back(target, error))
        raise
    return Publication(url=state.url, commit=commit)


def _files(folder: Path) -> dict[str, Path]:
    """Return the files under the folder by their names in the repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise PublishError(f"{folder}: nothing to publish: there is no file in it")
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _check(
    state: RemoteState,
    *,
    private: bool,
    gated: Gated | None,
    head: str | None,
    pull_request: bool,
) -> None:
    name = state.repo_id
    if pull_request and not state.exists:
        raise PublishError(f"{name}: isn't there, so there is nothing to open a pull request on")
    if not state.writable and not pull_request:
        raise PublishError(f"{name}: {no_right(state)}")
    if state.exists and gated and state.gated != gated:
        raise PublishError(
            f"{name} is {state.gated or 'open'} and gated {gated} was asked for: change it at {state.url}/settings, "
            "or leave out --gated"
        )
    if state.exists and state.private != private and not pull_request:
        now, requested = ("public", "private") if private else ("private", "public")
        raise PublishError(
            f"{name} is {now} and {requested} was asked for: change it at {state.url}/settings, "
            f"ask for {now}, or take another name"
        )
    if head is not None and state.head != head:
        raise PublishError(
            f"{name}: someone committed meanwhile: its head is {str(state.head)[:8]} and was {head[:8]}; "
            "nothing was sent: look at what is there now and run this again"
        )


def _validate_card(staged: dict[str, Path], repo_id: str, kind: RepoKind) -> None:
    """Validate the card by the Hub's rules, before gigabytes are sent."""
    if CARD not in staged:
        return
    card = RepoCard(staged[CARD].read_text(encoding="utf-8"), ignore_metadata_errors=True)
    try:
        with_retries(lambda: card.validate(repo_type=kind))
    except ValueError as error:
        if isinstance(error, HTTPError):
            raise
        raise PublishError(
            f"{repo_id}: the Hub refuses the card ({CARD}): {error}; nothing was sent"
        ) from None


def _target(state: RemoteState, *, private: bool, gated: Gated | None) -> _Target:
    api, kind = hub_api(), state.kind
    if not state.exists:
        # exist_ok: the answer to a first try may have been lost.
        with_retries(
            lambda: api.create_repo(state.repo_id, private=private, exist_ok=True, repo_type=kind)
        )
        if gated:  # before a file is in it
            with_retries(
                lambda: api.update_repo_settings(state.repo_id, gated=gated, repo_type=kind)
            )
    info = None if state.exists else with_retries(lambda: _info(api, state.repo_id, kind))
    return _Target(
        api=api,
        repo_id=state.repo_id,
        kind=kind,
        head=str(info.sha if info else state.head),
        files=frozenset(state.files),
        is_new=info is not None,
    )


def _commit(
    target: _Target,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    staged: dict[str, Path],
    message: str,
) -> str:
    """Commit, compare the commit's files with ours, and return its id."""
    try:
        commit = with_retries(
            lambda: target.api.create_commit(
                target.repo_id,
                operations,
                commit_message=message,
                parent_commit=target.head,
                repo_type=target.kind,
            )
        ).oid
    except HTTPError:
        # An answer that was lost makes the second try fail: the head has moved, to our own commit.
        landed = _head(target)
        if landed == target.head or _differing(target, landed, staged):
            raise
        commit = landed
    if wrong := _differing(target, commit, staged):
        raise PublishError(
            f"{target.repo_id}: commit {commit[:8]} holds other bytes than were sent in {', '.join(wrong)}: "
            f"look at {repo_url(target.repo_id, target.kind)}/commits/main"
        )
    return commit


def _open(
    target: _Target,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    staged: dict[str, Path],
    message: str,
    user: str,
) -> Publication:
    """Return the pull request that has the files; the repository itself if it has them already."""
    gone = {
        operation.path_in_repo
        for operation in operations
        if isinstance(operation, CommitOperationDelete)
    }

    def holds(commit: str) -> bool:
        there = files_at(target.api, target.repo_id, commit, target.kind)
        same = all(name in there and there[name].is_copy_of(path) for name, path in staged.items())
        return same and not gone & set(there)

    if holds(target.head):
        return Publication(url=repo_url(target.repo_id, target.kind), commit=target.head)
    opened = open_pull_request(
        target.api,
        target.repo_id,
        operations,
        kind=target.kind,
        user=user,
        head=target.head,
        message=message,
        holds=holds,
    )
    return Publication(url=opened.url, commit=opened.commit, pull_request=True)


def _info(api: HfApi, repo_id: str, kind: RepoKind) -> Any:
    return api.repo_info(repo_id, repo_type=kind)


def _head(target: _Target) -> str:
    return str(with_retries(lambda: _info(target.api, target.repo_id, target.kind)).sha)


def _differing(target: _Target, commit: str, staged: dict[str, Path]) -> list[str]:
    remote = files_at(target.api, target.repo_id, commit, target.kind)
    return [
        name
        for name, path in staged.items()
        if name not in remote or not remote[name].is_copy_of(path)
    ]


def _roll_back(target: _Target, error: BaseException) -> str:
    """Delete a new repository unless a second call can resume from it; return the Hub's state."""
    if not target.is_new:
        return "The repository is as it was"
    where = repo_url(target.repo_id, target.kind)
    if is_transient(error) or isinstance(error, KeyboardInterrupt):
        return f"{where} was made and is empty; the same command goes on from what has arrived"
    try:
        if _head(target) != target.head:
            return f"{where} was made for this and someone has committed to it since: it was left"
        with_retries(lambda: target.api.delete_repo(target.repo_id, repo_type=target.kind))
    except HUB_ERRORS:
        return f"{where} was made for this and is empty, and couldn't be deleted again: delete it at {where}/settings"
    return "The repository that was made for this was deleted again"
