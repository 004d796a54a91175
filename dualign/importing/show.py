"""The three lists in the terminal."""

from rich.table import Table
from rich.text import Text

from dualign.errors import excerpt
from dualign.importing.importing import Imported
from dualign.importing.tables import Action
from dualign.importing.writer import TITLES


def lists_table(imported: Imported) -> Table:
    """Build the table of the three lists: a row for each key of the file."""
    table = Table(title=f"{imported.source} of {imported.tool}", title_justify="left")
    for name in ("key", "line", "value", "here", "what changes, or what to do"):
        table.add_column(name, justify="right" if name == "line" else "left", overflow="fold")
    for action, title in TITLES.items():
        notes = imported.list_of(action)
        table.add_row(Text(f"{title}: {len(notes)}", style="bold"), end_section=not notes)
        for note in notes:
            line = str(note.line) if note.line else ""
            cells = (f"  {note.key}", line, excerpt(note.value, 40), note.target, note.says)
            table.add_row(*map(Text, cells), end_section=note is notes[-1])
    return table


def counts(imported: Imported) -> str:
    """Return the lengths of the three lists in words."""
    actions: tuple[Action, ...] = ("carried", "changed", "refused")
    sizes = [len(imported.list_of(action)) for action in actions]
    return f"{sizes[0]} carried over, {sizes[1]} with another meaning, {sizes[2]} can't be carried over"
