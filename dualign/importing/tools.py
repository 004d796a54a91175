"""The tools whose recipes are read, and whose a file is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dualign.errors import ConfigError, listing
from dualign.importing import axolotl, llama_factory, trl
from dualign.importing.draft import Draft
from dualign.importing.tables import Table, read_table


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: NAME.yaml has its keys."""

    name: str
    shown: str
    """as its people write it"""
    fill: Callable[[Draft], None]
    """writes into a draft what rows can't say"""

    @property
    def table(self) -> Table:
        """Its keys."""
        return read_table(self.name)


TOOLS: tuple[Tool, ...] = (
    Tool("axolotl", "axolotl", axolotl.fill),
    Tool("llama_factory", "LLaMA-Factory", llama_factory.fill),
    Tool("trl", "TRL", trl.fill),
)
_OTHERS = {
    "stages": "a recipe of dualign",
    "train_dataset": "a recipe of LLaMA-Factory's v1 engine, which isn't read",
    "merge_method": "a merge in mergekit's form: `dualign merge` takes it as it is",
}


def tool_names() -> tuple[str, ...]:
    """Return what --from takes."""
    return tuple(tool.name for tool in TOOLS)


def script_names() -> tuple[str, ...]:
    """Return what --script takes."""
    return trl.SCRIPTS


def choose_tool(keys: Iterable[str], file: str, name: str | None = None) -> Tool:
    """Return the tool that is named, or whose signs a file has.

    Raises:
        ConfigError: no tool's signs are there, or those of several.
    """
    if name is not None:
        return next(tool for tool in TOOLS if tool.name == name)
    keys = list(keys)
    signs = {tool: [key for key in keys if key in tool.table.signs] for tool in TOOLS}
    likely = {tool: seen for tool, seen in signs.items() if seen}
    for key, kind in _OTHERS.items():
        if key in keys and len(likely) != 1:
            raise ConfigError(f"{file}: is {kind} (it has the key {key!r}), not another tool's")
    if len(likely) == 1:
        return next(iter(likely))
    choice = f"say which tool's it is: --from {' or '.join(tool_names())}"
    if not likely:
        raise ConfigError(
            f"{file}: its keys ({listing(keys, 12) or 'none'}) are signs of no tool; {choice}"
        )
    seen = "; ".join(f"{tool.shown}: {listing(keys, 6)}" for tool, keys in likely.items())
    raise ConfigError(f"{file}: has keys of several tools ({seen}); {choice}")
