"""Upload staged files to a repository on the Hub: all of them in one commit, or none.

LFS files are uploaded first; they are invisible until the commit references them. The commit is one
request that names its parent, so if someone else commits meanwhile it fails and nothing is lost.
huggingface_hub's `upload_folder` isn't used: with Xet storage, its default, it commits in parts.
"""

import logging
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A finished upload. `commit` has the files; it is an older one if nothing had changed."""

    url: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The repository that is written to, in its state before the upload."""

    api: HfApi
    repo_id: str
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
) -> Publication:
    """Upload every file under `folder` and delete the files `delete`, in one commit.

    The repository is created if it is missing. Network failures are retried; large files that have
    arrived aren't sent twice, in a later call either.

    Args:
        head: the commit that the caller has seen; if it has changed, the upload is refused.

    Raises:
        PublishError: the upload failed. The repository has the files it had before; a new one is
            deleted again, or left empty if a second call would resume from it.
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
    step = "checking the card"
    target = None
    try:
        _validate_card(staged, repo_id)
        step = "making the repository"
        target = _target(state, private=private)
        additions = [CommitOperationAdd(name, path) for name, path in staged.items()]
        step = "sending the large files"
        # An empty .gitignore: one in the repository would leave out files without a word.
        target.api.preupload_lfs_files(repo_id, additions, free_memory=False, gitignore_content="")
        step = "committing"
        deletions = [CommitOperationDelete(name) for name in delete if name in target.files]
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
    return Publication(url=f"{constants.ENDPOINT}/{repo_id}", commit=commit)


def _check(state: RemoteState, *, private: bool, head: str | None) -> None:
    name = state.repo_id
    if not state.writable:
        raise PublishError(
            f"{name}: {state.user}'s token may not write there: take one that may from "
            f"{constants.ENDPOINT}/settings/tokens, or publish under {state.user}/"
        )
    if state.exists and state.private != private:
        now, requested = ("public", "private") if private else ("private", "public")
        raise PublishError(
            f"{name} is {now} and {requested} was asked for: change it at {constants.ENDPOINT}/{name}/settings, "
            f"ask for {now}, or take another name"
        )
    if head is not None and state.head != head:
        raise PublishError(
            f"{name}: someone committed meanwhile: its head is {str(state.head)[:8]} and was {head[:8]}; "
            "nothing was sent: look at what is there now and run this again"
        )


def _validate_card(staged: dict[str, Path], repo_id: str) -> None:
    """Validate the card by the Hub's rules, before gigabytes are sent."""
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
    info = None if state.exists else with_retries(lambda: api.model_info(state.repo_id))
    return _Target(
        api=api,
        repo_id=state.repo_id,
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
    remote = files_at(target.api, target.repo_id, commit)
    return [
        name
        for name, path in staged.items()
        if name not in remote or not remote[name].is_copy_of(path)
    ]


def _roll_back(target: _Target, error: BaseException) -> str:
    """Delete a new repository unless a second call can resume from it; return the Hub's state."""
    if not target.is_new:
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
