"""`dualign publish`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.cli.parsers import Sub, command
from dualign.config import parse_value
from dualign.errors import ConfigError
from dualign.publish.checklist import MAY_FAIL
from dualign.switch import read_switch

if TYPE_CHECKING:
    from dualign.publish.release import PublishRequest

_ABOUT = """\
RUN_DIR is the run directory of a stage that `dualign run` finished, such as runs/quickstart/merged,
or a folder that `dualign export` wrote of one;
REPO_ID a repository on the hub, owner/name. Without --yes nothing leaves: the files, the card as it
will be and every check are shown. With --yes all of it goes in one commit; a failure on the way
leaves the repository as it was.

Weights are loaded in a fresh process by plain transformers and peft and have to give the run's
logits; both modes are asked; nothing with a token, a path of this machine or a pickle goes. The
license is computed from those of the base and of the data. docs/publishing.md has every check and
what to do where it fails.

Log in with `hf auth login`, or set HF_TOKEN.
"""
_EXAMPLES = """\
examples:
  dualign publish runs/quickstart/merged you/quickstart --license-of problems=apache-2.0
  dualign publish runs/quickstart/merged you/quickstart --license apache-2.0 --yes --public
  dualign publish runs/mine/apo you/adapter --base HuggingFaceTB/SmolLM3-3B-Base@COMMIT
  dualign publish runs/mine/apo you/model --what both     weights on top, the adapter in adapter/
  dualign publish runs/quickstart/merged you/quickstart --with gguf fp8    copies beside the weights
  dualign publish gguf you/quickstart-GGUF --quantized-of you/quickstart   what `dualign export` wrote
  dualign publish runs/law/sft runs/code/sft you/pack     adapters of one base, each in adapters/NAME
"""


def add(sub: Sub) -> None:
    """The command."""
    parser = command(sub, "publish", "put a finished run on the hub", _ABOUT)
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "run_dir",
        nargs="+",
        metavar="RUN_DIR",
        help="a stage's run directory; of several, all adapters of one base, they are published together",
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the hub")
    parser.add_argument("--yes", action="store_true", help="upload; without it all is only shown")
    parser.add_argument(
        "--card-only",
        action="store_true",
        help="update card, records and figures of a repository that holds these weights",
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
    parser.add_argument(
        "--quantized-of",
        metavar="OWNER/NAME",
        help="RUN_DIR is an exported folder (GGUF, or in fewer bits): the repository of its weights",
    )
    parser.add_argument(
        "--with",
        dest="exports",
        action="extend",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="exported folders of these weights: GGUF files go beside them, a checkpoint into a folder",
    )
    _add_repository(parser)
    _add_card(parser)
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=MAY_FAIL,
        help="publish although this check fails; the card will say it",
    )
    parser.add_argument(
        "--switch",
        metavar="YAML",
        help="what switches the modes, as in a recipe; default: what the template states or reads",
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--out", metavar="DIR", help="leave a copy of the files in a new folder")
    parser.set_defaults(action=_publish)


def _add_repository(parser: ArgumentParser) -> None:
    """Who may see and change the repository."""
    parser.add_argument(
        "--public", action="store_true", help="for everyone to see; default: private"
    )
    parser.add_argument(
        "--pr",
        action="store_true",
        help="open a pull request on a repository that is there, instead of a commit",
    )
    parser.add_argument(
        "--gated",
        choices=("auto", "manual"),
        help="a new repository's files are for those who ask: at once, or after you agree",
    )


def _add_card(parser: ArgumentParser) -> None:
    """What the card says, where it isn't computed or in the recipe."""
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


def _publish(args: Namespace) -> int:
    """`dualign publish RUN_DIR REPO_ID`: 1 if a check failed."""
    from dualign.cli.commands import say
    from dualign.publish.pack import prepare_pack
    from dualign.publish.publish import leave_copy, prepare, upload_release
    from dualign.publish.show import show
    from dualign.publish.staging import staging_folder
    from dualign.rundir import require_new

    requests = [_request(args, Path(run_dir)) for run_dir in args.run_dir]
    if args.out:
        require_new(Path(args.out))
    with staging_folder(requests[0].run_dir) as folder:
        staged = prepare_pack(requests, folder) if requests[1:] else prepare(requests[0], folder)
        show(staged)
        if args.out:
            leave_copy(staged, Path(args.out))
            say(f"a copy of the files: {args.out}")
        if staged.failed:
            checks = "1 check" if len(staged.failed) == 1 else f"{len(staged.failed)} checks"
            say(f"not published: {checks} failed: {', '.join(staged.failed)}")
            return 1
        if not args.yes:
            say(_next(args))
            return 0
        publication = upload_release(staged, message=args.message)
        if publication.pull_request:
            say(f"pull request: {publication.url} at {publication.commit}")
        else:
            say(f"published: {publication.url} at {publication.commit}")
        if publication.collection:
            say(f"in the collection: {publication.collection}")
        if publication.collection_fault:
            say(f"not added to the collection (the upload stands): {publication.collection_fault}")
    return 0


def _request(args: Namespace, run_dir: Path) -> "PublishRequest":
    from dualign.publish.release import PublishRequest

    license_of = {}
    for text in args.license_of:
        source, equals, license = text.rpartition("=")
        if not (equals and source and license):
            raise ConfigError(
                f"--license-of {text}: expected SOURCE=ID, such as problems=apache-2.0"
            )
        license_of[source] = license
    return PublishRequest(
        run_dir=run_dir,
        repo_id=args.repo_id,
        contents=args.what,
        bases=tuple(args.base),
        license=args.license,
        license_of=license_of,
        languages=tuple(args.language),
        allow=frozenset(args.allow),
        switch=None if args.switch is None else read_switch(parse_value(args.switch), "--switch"),
        private=not args.public,
        quantized_of=args.quantized_of,
        exports=tuple(map(Path, args.exports)),
        card_only=args.card_only,
        pull_request=args.pr,
        gated=args.gated,
        upload=args.yes,
    )


def _next(args: Namespace) -> str:
    """Return the same command with --yes."""
    import shlex

    words = ["dualign", "publish", *args.run_dir, args.repo_id]
    for option, values in (
        ("--what", [args.what]),
        ("--base", args.base),
        ("--quantized-of", [args.quantized_of]),
        ("--with", args.exports),
        ("--gated", [args.gated]),
        ("--license", [args.license]),
        ("--license-of", args.license_of),
        ("--language", args.language),
        ("--allow", args.allow),
        ("--switch", [args.switch]),
        ("--message", [args.message]),
    ):
        words += [word for value in values if value for word in (option, value)]
    flags = (("--public", args.public), ("--card-only", args.card_only), ("--pr", args.pr))
    words += [flag for flag, wanted in flags if wanted]
    visibility = "for everyone to see" if args.public else "private; --public makes it public"
    return f"nothing has left. To publish ({visibility}):\n  {shlex.join([*words, '--yes'])}"
