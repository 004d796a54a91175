"""One base error; one class for each kind of mistake a user can make.

The text of an error says what was found (value, row, file:key), what was expected, and what to do. To add a kind:
subclass `DualignError` and the standard error that is nearest to it. The command line prints the text, without a
traceback, and exits with 2.
"""


class DualignError(Exception):
    """Something the user can mend."""


class ConfigError(DualignError, ValueError):
    """A recipe or an override that can't be right."""


class DataError(DualignError, ValueError):
    """A row, a source or a mixture that can't be used as asked."""


class TemplateError(DualignError, ValueError):
    """A chat template that can't be read, or whose supervised text can't be proven."""


class CheckpointError(DualignError, OSError):
    """A model folder or run directory that is missing, incomplete, locked or not what was expected."""


class MergeError(DualignError, ValueError):
    """Checkpoints or weights that can't be merged."""


class PublishError(DualignError):
    """What a user wants to publish can't be, or the hub refused it."""


class EvaluationError(DualignError, ValueError):
    """A task, a verifier or a backend that can't be used."""


def excerpt(value: object, limit: int = 80) -> str:
    """Return the repr of a value for a message, without its middle if it is longer than `limit`."""
    text, tail = repr(value), limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 5]} ... {text[-tail:]}"
