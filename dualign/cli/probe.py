"""`dualign eval MODEL --probe long --lengths 4k,8k`: problems made at chosen lengths."""

from argparse import ArgumentParser, Namespace

from dualign.errors import ConfigError

_OPTIONS = ("lengths", "forms", "languages")


def add(parser: ArgumentParser) -> None:
    """Add the options of a probe."""
    parser.add_argument(
        "--probe",
        choices=("long",),
        help="make problems of chosen lengths (docs/long-context.md); --rows is how many of each, 20 without it",
    )
    parser.add_argument("--lengths", metavar="N,N", help="tokens of a problem, as in 4k,8k")
    parser.add_argument("--forms", metavar="NAME,NAME", help="of the probe's problems; default all")
    parser.add_argument(
        "--languages", metavar="CODE,CODE", help="of the probe's problems, as in en,fr; default en"
    )


def tasks(args: Namespace) -> list[str]:
    """Return the reference of the probe's tasks; [] without a probe.

    Raises:
        ConfigError: a probe without lengths, or options of a probe without one.
    """
    options = [f"--{name}" for name in _OPTIONS if getattr(args, name) is not None]
    if args.probe is None:
        if options:
            raise ConfigError(f"eval: {', '.join(options)} belong to a probe: add --probe long")
        return []
    if args.lengths is None:
        raise ConfigError("eval: --probe long needs --lengths, such as --lengths 4k,8k")
    from dualign.tasks.long.source import reference

    chosen = {
        name: value.split(",") for name in _OPTIONS if (value := getattr(args, name)) is not None
    }
    return [reference(**chosen, problems=args.rows)]
