"""One base error, and one class for each kind of mistake that a user can fix.

The text of an error says what was found (value, row, file:key), what was expected, and what to do.
The command line prints it without a traceback and exits with 2. To add a kind, subclass
`DualignError` and the nearest standard error.
"""

from collections.abc import Iterable


class DualignError(Exception):
    """A mistake the user can fix."""


class ConfigError(DualignError, ValueError):
    """An invalid recipe, override or option."""


class DataError(DualignError, ValueError):
    """A row, source or mixture that can't be used as configured."""


class TemplateError(DualignError, ValueError):
    """An unreadable chat template, or one whose supervised text can't be proven."""


class CheckpointError(DualignError, OSError):
    """A model folder or run directory that is missing, incomplete, locked or of another kind."""


class TrainingError(DualignError, ArithmeticError):
    """A training step, or a trained model, that isn't made of finite numbers."""


class OutOfMemoryError(DualignError, MemoryError):
    """A device that has no room for a stage."""


class MergeError(DualignError, ValueError):
    """Checkpoints or weights that can't be merged."""


class PublishError(DualignError):
    """A run that can't be published, or an upload that the Hub refused."""


class EvaluationError(DualignError, ValueError):
    """An unusable task, verifier or backend."""


def excerpt(value: object, limit: int = 80) -> str:
    """Return the repr of a value for a message, without its middle if it is longer than `limit`."""
    text, tail = repr(value), limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def listing(names: Iterable[object], shown: int = 20) -> str:
    """Return names for a message: the first ones, and the beginnings of long ones."""
    texts = [str(name) for name in names]
    texts = [text if len(text) <= 40 else f"{text[:36]} ..." for text in texts]
    return ", ".join([*texts[:shown], *(["..."] if len(texts) > shown else [])])
