"""Pull requests on the Hub: one for a content, however often it is asked for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi

from dualign.publish.hub.client import HTTPError, is_transient, with_retries
from dualign.publish.hub.repository import RepoKind

_PAUSES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """An open pull request. `commit`: its head."""

    url: str
    commit: str


def open_pull_request(
    api: HfApi,
    repo_id: str,
    operations: Sequence[Any],
    *,
    kind: RepoKind,
    user: str,
    head: str,
    message: str,
    holds: Callable[[str], bool],
) -> PullRequest:
    """Return the user's open pull request with this content; open one if there is none.

    A request whose answer was lost isn't sent again before it was looked for.

    Args:
        head: the commit that it starts from.
        holds: whether a commit has the content.

    Raises:
        HTTPError: the Hub refused.
    """
    for pause in (*_PAUSES, None):
        if known := _find(api, repo_id, kind, user, holds):
            return known
        try:
            opened = api.create_commit(
                repo_id,
                list(operations),
                commit_message=message,
                parent_commit=head,
                create_pr=True,
                repo_type=kind,
            )
            return PullRequest(url=str(opened.pr_url), commit=opened.oid)
        except HTTPError as error:
            if pause is None or not is_transient(error):
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _find(
    api: HfApi, repo_id: str, kind: RepoKind, user: str, holds: Callable[[str], bool]
) -> PullRequest | None:
    listed = with_retries(
        lambda: list(
            api.get_repo_discussions(
                repo_id,
                repo_type=kind,
                author=user,
                discussion_type="pull_request",
                discussion_status="open",
            )
        )
    )
    for known in listed:
        if known.author != user:
            continue
        revision = f"refs/pr/{known.num}"
        info = with_retries(lambda: api.repo_info(repo_id, repo_type=kind, revision=revision))  # noqa: B023 - called at once
        if holds(str(info.sha)):
            return PullRequest(url=known.url, commit=str(info.sha))
    return None
