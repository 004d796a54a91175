"""Check on the repository as it is on the hub now."""

from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.hub.repository import RemoteState
from dualign.publish.release import PublishRequest


def check_repository(request: PublishRequest, repository: RemoteState | str) -> CheckOutcome:
    """The repository may be written to and is as private as requested.

    Args:
        repository: its state, or why that isn't known, which only stops an upload.
    """
    if isinstance(repository, str):
        return CheckOutcome(state="failed" if request.upload else "skipped", message=repository)
    name, user = repository.repo_id, repository.user
    faults = []
    if not repository.writable:
        faults.append(f"{user}'s token may not write to {name}; publish under {user}/")
    if repository.exists and repository.private != request.private:
        now, requested = ("private", "public") if repository.private else ("public", "private")
        faults.append(
            f"{name} is {now} and would be {requested}: change it in its settings, or "
            f"{'leave out' if requested == 'public' else 'add'} --public"
        )
    summary = (
        f"is there with {len(repository.files)} files" if repository.exists else "will be made"
    )
    return judge(faults, f"{name} {summary}; {user} may write")
