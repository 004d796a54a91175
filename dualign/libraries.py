"""What libraries print: only what a user can act on."""

import logging
import os
import warnings

_LIBRARIES = "accelerate|bitsandbytes|datasets|peft|torch|transformers|trl"


def quiet_libraries() -> None:
    """Silence hints to programmers. What the environment says of a library's messages stays."""
    # It suggests a faster kernel even when nothing is quantized.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=rf"({_LIBRARIES})\b")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DeepSpeed says more than that there is no GPU, as it does whenever it is imported."""
    return "Setting accelerator to CPU" not in record.getMessage()


def hold_bars() -> None:
    """Hold back the bars of libraries, but for downloads, where ours say what goes on.

    tqdm reads this when it is imported.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")


def import_bars() -> None:
    """Import the bars of libraries in a notebook, without the warning that ipywidgets isn't there.

    They are lines of text then.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
