"""Shows some of the rows that were screened out, each with what it repeats."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def removed_table(rows: Mapping[str, Any]) -> Table:
    """The samples of ROWS of run.json: where a row was, why it went, and what it is the same as."""
    table = Table(title="some of the rows that were left out")
    for name in ("source", "row", "code", "same as", "text"):
        table.add_column(name, overflow="fold")
    for one in rows["removed"]:
        same = ", ".join(f"{key} {value}" for key, value in one["same_as"].items())
        table.add_row(one["source"], str(one["row"]), one["code"], same, one["text"])
    return table
