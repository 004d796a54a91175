"""The console that tables are printed to."""

from rich.console import Console


def wide_console(width: int = 160) -> Console:
    """A console for tables. A pipe has no width, and at rich's 80 columns tables would break."""
    console = Console()
    return console if console.is_terminal or console.width > 80 else Console(width=width)
