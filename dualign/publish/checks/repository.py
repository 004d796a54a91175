"""Check on the repository as it is on the hub now."""

from pathlib import Path

from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.hub.repository import RemoteState, no_right
from dualign.publish.manifest import is_document, is_published
from dualign.publish.release import PublishRequest, staged_files


def check_repository(request: PublishRequest, repository: RemoteState | str) -> CheckOutcome:
    """The repository may be written to and is as private as requested.

    Args:
        repository: its state, or why that isn't known, which only stops an upload.
    """
    if isinstance(repository, str):
        return CheckOutcome(state="failed" if request.upload else "skipped", message=repository)
    name, user = repository.repo_id, repository.user
    if request.pull_request:
        missing = (
            f"{name} isn't there, so there is nothing to open a pull request on: leave out --pr"
        )
        return judge([] if repository.exists else [missing], f"a pull request of {user} on {name}")
    faults = [] if repository.writable else [no_right(repository)]
    if repository.exists and request.gated and repository.gated != request.gated:
        faults.append(
            f"{name} is {'gated ' + repository.gated if repository.gated else 'open to all who see it'} and would "
            f"be gated {request.gated}: change it in its settings, or leave out --gated"
        )
    if repository.exists and repository.private != request.private:
        now, requested = ("private", "public") if repository.private else ("public", "private")
        faults.append(
            f"{name} is {now} and would be {requested}: change it in its settings, or "
            f"{'leave out' if requested == 'public' else 'add'} --public"
        )
    summary = (
        f"is there with {len(repository.files)} files" if repository.exists else "will be made"
    )
    if request.gated:
        summary += f", gated {request.gated}"
    if request.wishes.collection:
        summary += f", joins the collection {request.wishes.collection!r}"
    return judge(faults, f"{name} {summary}; {user} may write")


def check_same_weights(folder: Path, repository: RemoteState | str, upload: bool) -> CheckOutcome:
    """The repository holds this run's weights and tokenizer, so that a new card is true of them."""
    if isinstance(repository, str):
        return CheckOutcome(state="failed" if upload else "skipped", message=repository)
    name = repository.repo_id
    if not repository.exists:
        return judge([f"{name} isn't there: publish it without --card-only first"], "")
    rest = [file for file in staged_files(folder) if not is_document(file)]
    other = [
        file
        for file in rest
        if file not in repository.files or not repository.files[file].is_copy_of(folder / file)
    ]
    left = [
        file
        for file in repository.files
        if is_published(file) and not is_document(file) and file not in rest
    ]
    faults = [f"{file} on the Hub isn't this run's" for file in other]
    faults += [f"{file} is on the Hub and not in this run" for file in left]
    if faults:
        faults.append(
            "the card would tell of other weights: publish all of it, without --card-only"
        )
    return judge(faults, f"{name} holds the {len(rest)} files of this run that the card tells of")
