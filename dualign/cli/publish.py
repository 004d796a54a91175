"""`dualign publish`."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.cli.parsers import Sub, command
from dualign.errors import ConfigError

if TYPE_CHECKING:
    from dualign.publish.publish import Prepared, Request

# As dualign.publish.checks.checks has them, without importing it.
_MAY_FAIL = ("base", "base_weights", "modes", "doctor", "lineage")
_ABOUT = """\
RUN_DIR is the run directory of a stage that `dualign run` finished, such as runs/quickstart/merged,
REPO_ID a repository on the hub, owner/name. Without --yes nothing leaves: the files, the card as it
will be and every check are shown. With --yes all of it goes in one commit; a failure on the way
leaves the repository as it was.

Weights are loaded in a fresh process by plain transformers and peft and have to give the run's
logits; both modes are asked; nothing with a token, a path of this machine or a pickle goes. The
licence is computed from those of the base and of the data. docs/publishing.md has every check and
what to do where it fails.

Log in with `hf auth login`, or set HF_TOKEN.
"""
_EXAMPLES = """\
examples:
  dualign publish runs/quickstart/merged you/quickstart --license-of problems=apache-2.0
  dualign publish runs/quickstart/merged you/quickstart --license apache-2.0 --yes --public
  dualign publish runs/mine/apo you/adapter --base HuggingFaceTB/SmolLM3-3B-Base@COMMIT
  dualign publish runs/mine/apo you/model --what both     weights on top, the adapter in adapter/
"""


def add(sub: Sub) -> None:
    """The command."""
    parser = command(sub, "publish", "put a finished run on the hub", _ABOUT)
    parser.epilog = _EXAMPLES
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a stage's run directory")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the hub")
    parser.add_argument("--yes", action="store_true", help="upload; without it all is only shown")
    parser.add_argument(
        "--public", action="store_true", help="for everyone to see; default: private"
    )
    parser.add_argument(
        "--what",
        choices=("adapter", "weights", "both"),
        help="weights of an adapter's run are folded; default: what the run directory holds",
    )
    parser.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="ID@COMMIT",
        help="what a base on this machine is on the hub; PATH=ID@COMMIT where there are several",
    )
    parser.add_argument("--license", metavar="ID", help="of the whole; default: computed")
    parser.add_argument(
        "--license-of",
        action="append",
        default=[],
        metavar="SOURCE=ID",
        help="of one base or source of data; default: what the hub says",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE",
        help="en, de, ...; default: those of the base on the hub",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=_MAY_FAIL,
        help="publish although this check fails; the card will say it",
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--out", metavar="DIR", help="leave a copy of the files in a new folder")
    parser.set_defaults(action=publish)


def publish(given: Namespace) -> int:
    """`dualign publish RUN_DIR REPO_ID`: 1 if a check failed."""
    from dualign.cli.commands import say
    from dualign.publish.checks.repository import look
    from dualign.publish.publish import leave_copy, prepare, require_new, staging_folder
    from dualign.publish.show import show

    request = _request(given)
    if given.out:
        require_new(Path(given.out))
    remote, looked = look(request.repo_id, private=not given.public, needed=given.yes)
    with staging_folder(request.run_dir) as folder:
        prepared = prepare(request, folder, card_before=remote.card if remote else None)
        prepared = prepared.with_check(looked)
        show(prepared)
        if given.out:
            leave_copy(prepared, Path(given.out))
            say(f"a copy of the files: {given.out}")
        if prepared.failed:
            say(
                f"not published: {len(prepared.failed)} checks failed: {', '.join(prepared.failed)}"
            )
            return 1
        if not given.yes:
            say(_next(given))
            return 0
        _upload(prepared, remote, given)
    return 0


def _request(given: Namespace) -> "Request":
    from dualign.publish.publish import Request

    licence_of = {}
    for text in given.license_of:
        source, equals, licence = text.rpartition("=")
        if not (equals and source and licence):
            raise ConfigError(
                f"--license-of {text}: expected SOURCE=ID, such as problems=apache-2.0"
            )
        licence_of[source] = licence
    return Request(
        run_dir=Path(given.run_dir),
        repo_id=given.repo_id,
        what=given.what,
        bases=tuple(given.base),
        licence=given.license,
        licence_of=licence_of,
        languages=tuple(given.language),
        allow=frozenset(given.allow),
        ask_hub=given.yes,
    )


def _next(given: Namespace) -> str:
    """The same command again, and --yes."""
    import shlex

    words = ["dualign", "publish", given.run_dir, given.repo_id]
    for option, values in (
        ("--what", [given.what]),
        ("--base", given.base),
        ("--license", [given.license]),
        ("--license-of", given.license_of),
        ("--language", given.language),
        ("--allow", given.allow),
        ("--message", [given.message]),
    ):
        words += [word for value in values if value for word in (option, value)]
    words += ["--public"] if given.public else []
    seen = "for everyone to see" if given.public else "private; --public makes it public"
    return f"nothing has left. To publish ({seen}):\n  {shlex.join([*words, '--yes'])}"


def _upload(prepared: "Prepared", remote: Any, given: Namespace) -> None:
    from dualign.cli.commands import say
    from dualign.publish.hub.upload import upload
    from dualign.publish.publish import stale

    run = prepared.subject.lineage.run
    done = upload(
        prepared.folder,
        given.repo_id,
        private=not given.public,
        message=given.message or f"Publish {run.name} ({str(run.record.get('fingerprint'))[:12]})",
        delete=stale(tuple(remote.files), tuple(prepared.files)),
        head=remote.head,
    )
    say(f"published: {done.url} at {done.commit}")
