"""Collections of the Hub: found by title or slug, made if there is none, joined after an upload."""

import re

from dualign.publish.hub.client import HUB_ERRORS, hub_api, refusal, with_retries
from dualign.publish.hub.repository import RepoKind

_SLUG = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")


def join_collection(collection: str, repo_id: str, kind: RepoKind, *, private: bool) -> str:
    """Add a repository to a collection of its owner, and return the collection's address.

    Args:
        collection: a slug, or a title; one that the owner hasn't is made, `private` like the repository.

    Raises:
        PublishError: the Hub refused; the repository is as it was.
    """
    api, owner = hub_api(), repo_id.split("/")[0]
    try:
        slug, url = _find(collection, owner, private=private)
        with_retries(lambda: api.add_collection_item(slug, repo_id, kind, exists_ok=True))
    except HUB_ERRORS as error:
        raise refusal(error, repo_id, f"adding it to the collection {collection!r}") from None
    return url


def _find(collection: str, owner: str, *, private: bool) -> tuple[str, str]:
    api = hub_api()
    if _SLUG.fullmatch(collection):
        known = with_retries(lambda: api.get_collection(collection))
        return known.slug, known.url
    # The Hub makes a second collection of the same title without a word.
    for known in with_retries(lambda: list(api.list_collections(owner=owner))):
        if known.title.strip().casefold() == collection.strip().casefold():
            return known.slug, known.url
    created = with_retries(
        lambda: api.create_collection(collection, namespace=owner, private=private, exists_ok=True)
    )
    return created.slug, created.url
