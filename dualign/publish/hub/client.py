"""The client of the Hub: which failures are retried, and what a refusal means for the user."""

import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from dualign.errors import PublishError
from dualign.version import __version__

logger = logging.getLogger(__name__)
T = TypeVar("T")

# The HTTP library's own base error, whichever library this huggingface_hub uses.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
_MEANING = {
    401: "it doesn't know your token: make a new one at {hub}/settings/tokens and run `hf auth login` "
    "(a token in HF_TOKEN wins over the one that was logged in)",
    402: "payment required: see {hub}/settings/billing, or delete what you no longer need",
    403: "your token may not do this: take one that may write to {repo} from {hub}/settings/tokens, "
    "or publish under a name of yours",
    404: "there is no such repository for you any more: it was deleted, renamed or closed meanwhile",
    409: "someone else changed {repo} meanwhile: look at {hub}/{repo}/commits/main and run this again",
    412: "someone else committed to {repo} meanwhile: look at {hub}/{repo}/commits/main and run this again",
    413: "this is more than it takes at once",
    429: "it was asked too often: wait some minutes and run this again",
    507: "it has no room left: run this again later",
}


@functools.cache
def hub_api() -> HfApi:
    """Return huggingface_hub's client, with the token of `hf auth login` or HF_TOKEN.

    All calls share one: it caches the token's owner, and the Hub limits how often that is asked.
    """
    return HfApi(library_name="dualign", library_version=__version__)


def with_retries(call: Callable[[], T], pauses: Sequence[int] = (1, 2, 4, 8)) -> T:
    """Call, and retry after each pause (seconds) while the failure is transient."""
    for pause in pauses:
        try:
            return call()
        except HTTPError as error:
            if not is_transient(error):
                raise
            wait = _retry_after(error)
            wait = pause if wait is None else wait
            logger.warning("the Hub %s; trying again in %d s", _happened(error), wait)
            time.sleep(wait)
    return call()


def is_transient(error: BaseException) -> bool:
    """True if the same call may succeed later: the network failed, or a server is in trouble."""
    error = _innermost(error)
    status = status_of(error)
    return status in _TRANSIENT if status else isinstance(error, (HTTPError, ConnectionError))


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the Hub's answer; 0 if there was none."""
    if isinstance(error, HfHubHTTPError):
        return int(error.response.status_code)
    # hf_xet raises ConnectionError with the status in its text only.
    match = _XET_STATUS.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(match[1]) if match else 0


def _retry_after(error: Exception) -> int | None:
    """Return the seconds of the RateLimit header, which the Hub sends, or of Retry-After."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit and limit.remaining == 0:
        return int(limit.reset_in_seconds) + 1
    seconds = error.response.headers.get("Retry-After", "")
    return int(seconds) if seconds.isdigit() else None


def refusal(error: BaseException, repo_id: str, doing: str) -> PublishError:
    """Return the error for the user: the step, what happened, what to do. Never the token."""
    error = _innermost(error)
    meaning = _meaning(error).format(hub=constants.ENDPOINT, repo=repo_id)
    return PublishError(f"{repo_id}: {doing}: the Hub {_happened(error)}: {meaning}")


def _meaning(error: BaseException) -> str:
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it to publish"
    if status == 404 and "xet-write-token" in str(error):
        return "it has no Xet storage: set HF_HUB_DISABLE_XET=1"
    if isinstance(error, GatedRepoError):
        return (
            "access to it has to be asked for: do so on its page, {hub}/{repo}, and run this again"
        )
    if status:
        return _MEANING.get(
            status, "it is in trouble: run this again later" if status >= 500 else "it refused"
        )
    if isinstance(error, HTTPError):
        return "check the network, and HF_ENDPOINT if you set it, and run this again ({hub})"
    if isinstance(error, ConnectionError):
        return "run this again; where Xet storage can't be reached, with HF_HUB_DISABLE_XET=1"
    return "nothing was committed"


def _happened(error: BaseException) -> str:
    """Return `answered 403 (the server's text)` or how the connection failed, without the token."""
    status = status_of(error)
    if status:
        how, words = f"answered {status}", getattr(error, "server_message", None) or ""
    else:
        how = "can't be reached" if isinstance(error, HTTPError) else "client failed"
        words = str(error) or type(error).__name__
    return how + (f" ({_without_token(_first_line(words))})" if words else "")


def _innermost(error: BaseException) -> BaseException:
    """Return the cause that huggingface_hub wrapped, if a large file failed: it says more."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else ""


def _without_token(text: str) -> str:
    token: Any = get_token()
    return text.replace(token, "<token>") if token else text
