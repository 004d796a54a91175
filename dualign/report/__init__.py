"""report.html and report.md of a pipeline that has run."""
