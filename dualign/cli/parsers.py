"""The form of every command in `--help`, and how a command line is read."""

import argparse
from collections.abc import Sequence
from typing import TypeAlias

Sub: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
RECIPE_HELP = "a YAML file, a folder with recipe.yaml, or the name of a recipe that ships"


def command(sub: Sub, name: str, about: str, detail: str) -> argparse.ArgumentParser:
    """Add a command: `about` is for the list of commands, `detail` for its own help."""
    return sub.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.\n\n{detail}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; KEY=VALUE may also stand behind an option, where argparse takes no more of them."""
    args, rest = parser.parse_known_args(arguments)
    values = [text for text in rest if "overrides" in args and not text.startswith("-")]
    unknown = [text for text in rest if text not in values]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if values:
        args.overrides = [*args.overrides, *values]
    return args
