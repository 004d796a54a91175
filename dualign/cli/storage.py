"""`dualign runs`, `dualign clean` and `dualign env`."""

from argparse import Namespace
from pathlib import Path

from dualign.cli.parsers import Sub, command

_RUNS = """\
Lists the runs under FOLDER, and of each its stages: how far they are, the figure that says most
about each, time, and size on disk. Nothing is written.
"""
_CLEAN = """\
Lists what may go from the disk, and what is lost by that. Finished stages are never among it, nor
what a run is writing now. Nothing is deleted without --delete.

  dualign clean                                 the list
  dualign clean --delete leftovers              what newer results replaced
  dualign clean --delete unfinished,tokens      work of stages that were cut off, and prepared rows
"""
_ENV = "Prints what a bug report needs. Keys and tokens are never in it."


def add(sub: Sub) -> None:
    """Add the commands."""
    parser = command(sub, "runs", "list the runs in a folder", _RUNS)
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="default runs")
    parser.set_defaults(action=_runs)
    parser = command(sub, "clean", "free disk space that runs and caches hold", _CLEAN)
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="default runs")
    parser.add_argument(
        "--delete",
        metavar="KINDS",
        help="delete what is listed under these kinds, separated by commas",
    )
    parser.set_defaults(action=_clean)
    parser = command(sub, "env", "print versions, hardware and settings", _ENV)
    parser.set_defaults(action=_env)


def _runs(args: Namespace) -> int:
    """`dualign runs [FOLDER]`."""
    from dualign.cli.commands import say
    from dualign.storage.runs import read_runs
    from dualign.storage.show import runs_table
    from dualign.terminal import wide_console

    runs = read_runs(Path(args.folder))
    if runs:
        wide_console().print(runs_table(runs))
    else:
        say(f"{args.folder}: holds no runs; `dualign run RECIPE` makes one")
    return 0


def _clean(args: Namespace) -> int:
    """`dualign clean [FOLDER] --delete KINDS`."""
    from dualign.cli.commands import say
    from dualign.storage.cleaning import read_kinds, removables, remove
    from dualign.storage.runs import read_runs
    from dualign.storage.show import removables_table, size_text
    from dualign.terminal import wide_console

    kinds = None if args.delete is None else read_kinds(args.delete)
    folder = Path(args.folder)
    runs = read_runs(folder) if folder.exists() or args.folder != "runs" else ()
    items = [item for item in removables(runs) if kinds is None or item.kind in kinds]
    if not items:
        say("nothing may go")
        return 0
    wide_console().print(removables_table(items))
    if kinds is None:
        say("nothing was deleted; --delete KIND,... deletes those kinds")
    else:
        say(f"freed {size_text(remove(items))}")
    return 0


def _env(_: Namespace) -> int:
    """`dualign env`."""
    from dualign.cli.commands import say
    from dualign.environment import describe_environment

    for section, values in describe_environment().items():
        say(f"{section}")
        for name, value in values.items():
            say(f"  {name}: {value}")
    return 0
