"""`dualign prepare RECIPE`: the rows of a training stage, tokenized and packed before it runs."""

from argparse import Namespace

from dualign import api
from dualign.cli.parsers import RECIPE_HELP, Sub, command
from dualign.errors import ConfigError

_ABOUT = """\
Fills the cache that training reads from, and prints the account of the rows. Several machines that
see one folder ($DUALIGN_TOKENS) share the work under any scheduler: each of N workers writes a part
of the shards, and one joins them. The rows, their order, their key and the account are those of one
process.

  dualign prepare RECIPE                          here, with data.num_proc processes
  dualign prepare RECIPE --worker 0/8             part 0 of 8; the other workers are 1/8 to 7/8
  dualign prepare RECIPE --join 8                 when they have ended; writes parts that are missing

With data.dedup or data.decontaminate the workers run twice: first they screen, then they tokenize.
recipes/prepare/with_datatrove.py starts all of this.
"""


def add(sub: Sub) -> None:
    """Add the command."""
    parser = command(sub, "prepare", "tokenize and pack a stage's rows before it runs", _ABOUT)
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="set a key of the recipe")
    parser.add_argument("--stage", metavar="NAME", help="which training stage; default: the first")
    parser.add_argument("--worker", metavar="K/N", help="write part K, from 0, of N parts, and end")
    parser.add_argument("--join", metavar="N", type=int, help="go on with the parts of N workers")
    parser.set_defaults(action=_prepare)


def _prepare(args: Namespace) -> int:
    """`dualign prepare RECIPE --stage NAME --worker K/N | --join N`."""
    from dualign.cli.commands import say, training_stage

    worker, workers = _share(args.worker, args.join)
    recipe = api.load_recipe(args.recipe, *args.overrides)
    entry = training_stage(recipe, args.stage)
    from dualign.cost.show import show_prepared
    from dualign.data.workers import PartDoneError, Share

    share = Share(worker=worker, workers=workers) if workers else None
    try:
        show_prepared(recipe, entry, share)
    except PartDoneError as done:
        say(str(done))
    return 0


def _share(text: str | None, join: int | None) -> tuple[int | None, int]:
    """Return the number of this worker, or None, and how many there are, or 0.

    Raises:
        ConfigError: there is no such worker.
    """
    if text is None:
        if join is not None and join < 1:
            raise ConfigError(f"--join: expected the number of workers, found {join}")
        return None, join or 0
    if join is not None:
        raise ConfigError("--worker and --join: expected one of them; join when all workers ended")
    worker, _, workers = text.partition("/")
    if not (worker.isdecimal() and workers.isdecimal() and int(worker) < int(workers)):
        raise ConfigError(
            f"--worker: expected K/N, of N workers the one with a number from 0 to N - 1, found {text!r}"
        )
    return int(worker), int(workers)
