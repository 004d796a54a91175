"""Reports of a finished pipeline: report.html, report.md, tables for the terminal."""

__all__ = [
    "blocks",
    "conclusions",
    "experiment",
    "plots",
    "render",
    "report",
    "retention",
    "runs",
    "stages",
    "sweep",
    "tables",
]
