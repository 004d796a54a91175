"""The call of a release. Light to import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dualign.notebook import html_table
from dualign.switch import Switch, read_switch

if TYPE_CHECKING:
    from dualign.publish.checklist import CheckResult
    from dualign.publish.hub.upload import Publication
    from dualign.publish.release import PublishRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishResult:
    """What was, or would be, published."""

    files: Mapping[str, int]
    """name in the repository -> bytes"""
    checks: "tuple[CheckResult, ...]"
    card: str
    publication: "Publication | None"
    """the commit on the Hub; None for a dry run, and if a check failed"""

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed; while there are any, nothing is uploaded."""
        return [check.name for check in self.checks if check.state == "failed"]

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows: the files, and every check."""
        files = [(name, f"{size:,}") for name, size in self.files.items()]
        checks = [(check.name, check.state, check.message) for check in self.checks]
        columns = ("check", "state", "message")
        return html_table(("file", "bytes"), files) + html_table(columns, checks, text_columns=3)


def publish(
    run_dir: str | Path,
    repo_id: str,
    *,
    yes: bool = False,
    private: bool = True,
    what: Literal["adapter", "weights", "both"] | None = None,
    bases: Sequence[str] = (),
    license: str | None = None,
    license_of: Mapping[str, str] | None = None,
    languages: Sequence[str] = (),
    allow: Sequence[str] = (),
    switch: Switch | Mapping[str, Any] | None = None,
    quantized_of: str | None = None,
    exports: Sequence[str | Path] = (),
    card_only: bool = False,
    pull_request: bool = False,
    gated: Literal["auto", "manual"] | None = None,
    message: str | None = None,
) -> PublishResult:
    """Stage and check a run directory for the Hub; with `yes`, upload it in one commit.

    Args:
        run_dir: the run directory of a finished stage that made a model.
        repo_id: the repository, `owner/name`.
        yes: upload; without it, or if a check fails, nothing leaves.
        private: a new repository is seen by its owner alone.
        what: None: what the run directory holds.
        bases: what a base on this machine is on the Hub: `ID@COMMIT`, or `PATH=ID@COMMIT`.
        license: of the whole; None: computed.
        license_of: of a base or data source, by name.
        languages: codes such as `en`; none: those of the base.
        allow: names of checks that may fail.
        switch: what switches the modes, as in `evaluate`; None: what its template states or reads.
        quantized_of: `run_dir` is an exported folder: the repository of its weights.
        exports: exported folders of these weights, which go beside them.
        card_only: update card, records and figures of a repository that holds these weights.
        pull_request: open one, or return the open one that has these files, instead of a commit.
        gated: how access to its files is given; None: to everyone.
        message: of the commit.

    Returns:
        The files, every check, the card, and the commit if there was one.

    Raises:
        DualignError: there is no model in it, or the Hub refused the upload.
    """
    from dualign.publish.release import PublishRequest

    request = PublishRequest(
        run_dir=Path(run_dir), repo_id=repo_id, contents=what, bases=tuple(bases), license=license,
        license_of=license_of or {}, languages=tuple(languages), allow=frozenset(allow),
        switch=read_switch(switch, "switch"), private=private, quantized_of=quantized_of,
        exports=tuple(map(Path, exports)), card_only=card_only, pull_request=pull_request,
        gated=gated, upload=yes,
    )  # fmt: skip
    return _release(request, message)


def _release(request: "PublishRequest", message: str | None) -> PublishResult:
    from dualign.publish.publish import prepare, upload_release
    from dualign.publish.staging import staging_folder

    with staging_folder(request.run_dir) as folder:
        staged = prepare(request, folder)
        upload = request.upload and not staged.failed
        publication = upload_release(staged, message=message) if upload else None
    return PublishResult(
        files=staged.files, checks=staged.checks, card=staged.card, publication=publication
    )
