"""`dualign sweep`."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from dualign import api
from dualign.cli.parsers import Sub, command
from dualign.errors import CheckpointError, ConfigError
from dualign.recipe import Recipe, StageEntry
from dualign.rundir import read_run, work_folder

_SWEEP = """\
SWEEP OUT            runs the sweep of a file of kind sweep; the best merge goes into the folder OUT
RECIPE [KEY=VALUE ...]   runs the sweep stage of a recipe, into its output_dir

Each candidate's weights go into one model in memory, which answers the tasks in both modes; only
the best one is written, with sweep.json (every score), table.md and pareto.png. An interrupted
sweep, or one with more values, scores only the new candidates. docs/sweeps.md has the keys.
"""


def add(sub: Sub) -> None:
    """Add the command."""
    parser = command(sub, "sweep", "try many merges, score each, write the best", _SWEEP)
    parser.add_argument("recipe", metavar="SWEEP", help="a recipe with a sweep stage")
    parser.add_argument(
        "overrides", nargs="*", metavar="OUT", help="the folder to write; KEY=VALUE sets a key"
    )
    parser.add_argument("--stage", metavar="NAME", help="which stage of a pipeline recipe")
    parser.add_argument(
        "--dry-run", action="store_true", help="check, list the candidates and their cost"
    )
    parser.set_defaults(action=_sweep)


def _sweep(args: Namespace) -> int:
    """`dualign sweep SWEEP OUT`, or a stage of a recipe."""
    from dualign import engine
    from dualign.cli.commands import say

    recipe, entry = _read(args)
    if args.dry_run:
        say(_dry_run(recipe, entry))
        return 0
    folders = engine.run(recipe, only=entry.name, say=say)
    say(f"the best: {folders[recipe.stages.index(entry)]}; all of them: table.md, pareto.png there")
    return 0


def _read(args: Namespace) -> tuple[Recipe, StageEntry]:
    from dualign.cli.commands import choose

    folders = [text for text in args.overrides if "=" not in text]
    overrides = [text for text in args.overrides if "=" in text]
    if len(folders) > 1:
        raise ConfigError(f"sweep {args.recipe}: expected one folder to write, found {folders}")
    out = Path(folders[0]) if folders else None
    if out is not None:
        overrides.append(f"output_dir={out.parent}")
    recipe = api.load_recipe(args.recipe, *overrides)
    entry = choose(recipe, "sweep", args.stage)
    if out is None:
        return recipe, entry
    if len(recipe.stages) > 1:
        raise ConfigError(
            f"{recipe.file}: has several stages, which write into its output_dir; leave out {out}"
        )
    if out.exists() and read_run(out).get("kind") != "sweep":
        raise CheckpointError(
            f"{out}: is there already, and isn't a sweep's; choose another folder"
        )
    entry = replace(entry, name=out.name)
    return replace(recipe, stages=(entry,)), entry


def _dry_run(recipe: Recipe, entry: StageEntry) -> str:
    from dualign.cost.plan import resolve_references
    from dualign.engine import statuses
    from dualign.merging.sweep.estimate import estimate

    config, missing = resolve_references(entry, statuses(recipe, remember=False))
    if missing:
        raise ConfigError(
            f"{recipe.file}: stage {entry.name} merges {', '.join(missing)}, which hasn't run yet"
        )
    return estimate(config, work_folder(recipe.output_dir / entry.name), seed=entry.seed)
