"""`dualign import FILE`: a recipe from the file of another tool."""

from argparse import Namespace
from pathlib import Path

from dualign.cli.parsers import Sub, command
from dualign.importing.tools import script_names, tool_names

_IMPORT = """\
Reads the YAML file of another tool's run, and prints what becomes of each of its keys: carried over as
it is, carried over with another meaning (and what changes), or not at all (and what to do). No key is
left out. --out writes the recipe, with the three lists as comments at its top.

  dualign import axolotl.yaml                      the three lists
  dualign import axolotl.yaml --out mine.yaml      and the recipe
  dualign plan mine.yaml

The accelerate file of a run is on its command line: --launch names it. A file of TRL or of the
alignment-handbook doesn't say which script it is for; where its keys don't tell, --script does.
"""


def add(sub: Sub) -> None:
    """Add the command."""
    parser = command(sub, "import", "make a recipe from the file of another tool", _IMPORT)
    parser.add_argument("file", metavar="FILE", help="its YAML file")
    parser.add_argument("--out", metavar="RECIPE.yaml", help="the recipe to write")
    parser.add_argument(
        "--from",
        dest="tool",
        choices=tool_names(),
        help="whose file it is; default: found by its keys",
    )
    parser.add_argument("--launch", metavar="FILE", help="the accelerate file that it was run with")
    parser.add_argument(
        "--script", choices=script_names(), help="the script of TRL that the file is for"
    )
    parser.add_argument("--force", action="store_true", help="replace --out when it is there")
    parser.set_defaults(action=_import)


def _import(args: Namespace) -> int:
    """`dualign import FILE --out RECIPE.yaml --from TOOL --launch FILE --script NAME --force`."""
    from dualign.cli.commands import say
    from dualign.importing.importing import import_recipe
    from dualign.importing.writer import write_recipe

    out = Path(args.out) if args.out else None
    launch = Path(args.launch) if args.launch else None
    imported = import_recipe(Path(args.file), args.tool, out, script=args.script, launch=launch)
    written = write_recipe(imported, out, force=args.force) if out else []
    from dualign.importing.show import counts, lists_table
    from dualign.terminal import wide_console

    wide_console().print(lists_table(imported))
    say(counts(imported))
    for path in written:
        say(f"wrote {path}")
    if out is None:
        say("nothing was written; --out RECIPE.yaml writes the recipe")
    else:
        say(f"next: dualign plan {out}")
    return 0
