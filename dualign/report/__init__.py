"""Reports of a finished pipeline: report.html, report.md, tables for the terminal."""

__all__ = ["blocks", "conclusions", "plots", "render", "report", "runs", "sweep", "tables"]
