"""Reports of a pipeline, finished or not: report.html, report.md, tables for the terminal."""

__all__ = [
    "blocks",
    "budgets",
    "compare",
    "compare_pages",
    "conclusions",
    "experiment",
    "groups",
    "key_figures",
    "live",
    "plots",
    "render",
    "report",
    "retention",
    "runs",
    "sweep",
    "tables",
]
