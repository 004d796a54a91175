"""What the repository is now: whether we may write to it, and what stands in it."""

from typing import TYPE_CHECKING

from dualign.errors import PublishError
from dualign.publish.checks.checks import Check, check

if TYPE_CHECKING:
    from dualign.publish.hub.upload import RemoteState


def look(repo_id: str, *, private: bool, needed: bool) -> "tuple[RemoteState | None, Check]":
    """The repository's state, and the check on it. A dry run goes on without a hub or a token; `needed`: it doesn't."""
    from dualign.publish.hub.upload import remote_state

    try:
        state = remote_state(repo_id)
    except PublishError as error:
        return None, Check(name="hub", state="failed" if needed else "skipped", found=str(error))
    faults = []
    if not state.writable:
        faults.append(
            f"{state.user}'s token may not write to {repo_id}; publish under {state.user}/"
        )
    if state.exists and state.private != private:
        now, wanted = ("private", "public") if state.private else ("public", "private")
        faults.append(
            f"{repo_id} is {now} and would be {wanted}: change it in its settings, or "
            f"{'leave out' if wanted == 'public' else 'add'} --public"
        )
    told = (
        f"{repo_id} is there with {len(state.files)} files"
        if state.exists
        else f"{repo_id} will be made"
    )
    return state, check("hub", faults, f"{told}; {state.user} may write")
