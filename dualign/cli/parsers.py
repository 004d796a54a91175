"""The form of every command in `--help`."""

import argparse
from typing import TypeAlias

Sub: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(sub: Sub, name: str, about: str, detail: str) -> argparse.ArgumentParser:
    """Add a command: `about` is for the list of commands, `detail` for its own help."""
    return sub.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.\n\n{detail}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
