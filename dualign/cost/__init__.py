"""Cost of a recipe before it runs: memory, operations, time; `dualign plan` shows it."""

__all__ = [
    "measured",
    "plan",
    "show",
    "show_on",
    "start_config",
]
