"""`dualign compare`."""

from argparse import Namespace

from dualign import api
from dualign.cli.parsers import Sub, command

_COMPARE = """\
RUN is the folder of an evaluation (of `dualign eval`, or of a stage), a run with evaluation stages, a
model's folder in such a run, or RUN:MODEL. Without a name the last model that was evaluated counts.

  dualign compare runs/quickstart:sft runs/quickstart:merged
  dualign compare runs/a runs/b --html compared.html

Compared are the problems that both answered, in each mode; the others are named.
"""


def add(sub: Sub) -> None:
    """Add the command."""
    parser = command(
        sub, "compare", "show which problems turned right or wrong between two models", _COMPARE
    )
    parser.add_argument("before", metavar="RUN_A", help="the model to compare with")
    parser.add_argument("after", metavar="RUN_B", help="the model that is compared")
    parser.add_argument(
        "--html", metavar="FILE", help="also write a page with all problems, and filters"
    )
    parser.add_argument(
        "--show",
        type=int,
        default=3,
        metavar="N",
        help="problems shown of those that turned wrong, and right; default %(default)s",
    )
    parser.set_defaults(action=_compare)


def _compare(args: Namespace) -> int:
    """`dualign compare RUN_A RUN_B`."""
    comparison = api.compare(args.before, args.after, html=args.html)
    from dualign.cli.commands import say
    from dualign.report.compare_pages import print_comparison
    from dualign.terminal import wide_console

    print_comparison(comparison, wide_console(), shown=max(0, args.show))
    if args.html:
        say(f"all problems: {args.html}")
    return 0
