"""Send staged files to a repository on the Hub: all of them in one commit, or none.

Large files go up first and are seen by nobody until a commit names them; the commit itself is one request that names
its parent, so what someone else commits meanwhile makes it fail instead of being lost. huggingface_hub's
`upload_folder` isn't used: with Xet storage, its default, it commits in several parts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants

from dualign.errors import PublishError
from dualign.publish.hub.client import (
    HUB_ERRORS,
    HTTPError,
    hub_api,
    is_transient,
    refusal,
    with_retries,
)
from dualign.publish.hub.repository import CARD, RemoteFile, RemoteState, files_at, remote_state

__all__ = ["Publication", "RemoteFile", "RemoteState", "remote_state", "upload"]

logger = logging.getLogger(__name__)
_MOVED = (409, 412)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Where it is now. `commit` is the head that has the files; an older one when nothing had changed."""

    url: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The repository that is written to, as it was before."""

    api: HfApi
    repo_id: str
    head: str
    files: frozenset[str]
    made: bool  # by us, just now


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    message: str,
    delete: tuple[str, ...] = (),
    head: str | None = None,
) -> Publication:
    """Make the repository hold every file under `folder`, and none of `delete`, by one commit.

    A repository that isn't there is made. `head`: the commit that the caller has looked at; another one by now is an
    error. Network failures are tried again; large files that have arrived whole aren't sent twice, in a later call
    either.

    Raises:
        PublishError: it couldn't be done. The repository has the files it had before, and one that was made for
            this is deleted again, or left empty where a second call would go on from it.
    """
    staged = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if not staged:
        raise PublishError(f"{folder}: nothing to publish: there is no file in it")
    state = remote_state(repo_id)
    _check(state, private=private, head=head)
    doing = "checking the card"
    target = None
    try:
        _validate_card(staged, repo_id)
        doing = "making the repository"
        target = _target(state, private=private)
        additions = [CommitOperationAdd(name, path) for name, path in staged.items()]
        doing = "sending the large files"
        # An empty .gitignore: one in the repository would leave out files without a word.
        target.api.preupload_lfs_files(repo_id, additions, free_memory=False, gitignore_content="")
        doing = "committing"
        gone = [CommitOperationDelete(name) for name in delete if name in target.files]
        commit = _commit(target, additions, gone, staged, message)
    except PublishError:
        raise
    except HUB_ERRORS as error:
        told = refusal(error, repo_id, doing)
        raise (
            told if target is None else PublishError(f"{told}. {_roll_back(target, error)}")
        ) from None
    except BaseException as error:
        if target is not None:
            logger.warning("%s: %s", repo_id, _roll_back(target, error))
        raise
    return Publication(url=f"{constants.ENDPOINT}/{repo_id}", commit=commit)


def _check(state: RemoteState, *, private: bool, head: str | None) -> None:
    name = state.repo_id
    if not state.writable:
        raise PublishError(
            f"{name}: {state.user}'s token may not write there: take one that may from "
            f"{constants.ENDPOINT}/settings/tokens, or publish under {state.user}/"
        )
    if state.exists and state.private != private:
        found, asked = ("public", "private") if private else ("private", "public")
        raise PublishError(
            f"{name} is {found} and {asked} was asked for: change it at {constants.ENDPOINT}/{name}/settings, "
            f"ask for {found}, or take another name"
        )
    if head is not None and state.head != head:
        raise PublishError(
            f"{name}: someone committed meanwhile: its head is {str(state.head)[:8]} and was {head[:8]}; "
            "nothing was sent: look at what is there now and run this again"
        )


def _validate_card(staged: dict[str, Path], repo_id: str) -> None:
    """By the Hub's own rules, before gigabytes are sent."""
    if CARD not in staged:
        return
    card = ModelCard(staged[CARD].read_text(encoding="utf-8"), ignore_metadata_errors=True)
    try:
        with_retries(lambda: card.validate())
    except ValueError as error:
        if isinstance(error, HTTPError):
            raise
        raise PublishError(
            f"{repo_id}: the Hub refuses the card ({CARD}): {error}; nothing was sent"
        ) from None


def _target(state: RemoteState, *, private: bool) -> _Target:
    api = hub_api()
    if not state.exists:
        # exist_ok: the answer to a first try may have been lost.
        with_retries(lambda: api.create_repo(state.repo_id, private=private, exist_ok=True))
    found = with_retries(lambda: api.model_info(state.repo_id)) if not state.exists else None
    return _Target(
        api=api,
        repo_id=state.repo_id,
        head=str(found.sha if found else state.head),
        files=frozenset(state.files),
        made=found is not None,
    )


def _commit(
    target: _Target,
    additions: Sequence[CommitOperationAdd],
    gone: Sequence[CommitOperationDelete],
    staged: dict[str, Path],
    message: str,
) -> str:
    """The id of the commit, after its files were compared with ours."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions, *gone]
    try:
        commit = with_retries(
            lambda: target.api.create_commit(
                target.repo_id, operations, commit_message=message, parent_commit=target.head
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
            f"look at {constants.ENDPOINT}/{target.repo_id}/commits/main"
        )
    return commit


def _head(target: _Target) -> str:
    return str(with_retries(lambda: target.api.model_info(target.repo_id)).sha)


def _differing(target: _Target, commit: str, staged: dict[str, Path]) -> list[str]:
    there = files_at(target.api, target.repo_id, commit)
    return [
        name
        for name, path in staged.items()
        if name not in there or not there[name].is_copy_of(path)
    ]


def _roll_back(target: _Target, error: BaseException) -> str:
    """Leave the Hub as it was, and say what it is like. What was made for this goes, unless a second call gains by it."""
    if not target.made:
        return "The repository is as it was"
    where = f"{constants.ENDPOINT}/{target.repo_id}"
    if is_transient(error) or isinstance(error, KeyboardInterrupt):
        return f"{where} was made and is empty; the same command goes on from what has arrived"
    try:
        if _head(target) != target.head:
            return f"{where} was made for this and someone has committed to it since: it was left"
        with_retries(lambda: target.api.delete_repo(target.repo_id))
    except HUB_ERRORS:
        return f"{where} was made for this and is empty, and couldn't be deleted again: delete it at {where}/settings"
    return "The repository that was made for this was deleted again"
