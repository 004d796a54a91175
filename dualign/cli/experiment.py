"""`dualign experiment`."""

from argparse import Namespace

from dualign.cli.parsers import Sub, command
from dualign.experiments.start import experiment, plan_experiment

_EXPERIMENT = """\
FILE names a recipe and the keys that vary:

  recipe: recipe.yaml
  grid: {apo.train.beta: [0.05, 0.1, 0.3], apo.seed: [0, 1]}

Each combination is a run. Stages that runs share are done once, and with `halving` the worse runs
are stopped early. After a crash, run the same command again. Table, plots and the best run's recipe
are in the output folder. docs/experiments.md has the keys.
"""


def add(sub: Sub) -> None:
    """Add the command."""
    about = "run a recipe with many settings, and compare them"
    parser = command(sub, "experiment", about, _EXPERIMENT)
    parser.add_argument("file", metavar="FILE", help="the YAML file of the experiment")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="output_dir, name, score or best; any other key is set in the recipe of all runs",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs, what they share and cost"
    )
    parser.set_defaults(action=_experiment)


def _experiment(args: Namespace) -> int:
    """`dualign experiment FILE`."""
    from dualign.cli.commands import say

    if args.dry_run:
        plan_experiment(args.file, *args.overrides)
    else:
        experiment(args.file, *args.overrides, say=say)
    return 0
