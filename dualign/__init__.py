"""dualign: post-train one set of weights that reasons on /think and answers at once on /no_think.

    import dualign

    recipe = dualign.load_recipe("quickstart", "output_dir=runs/mine")
    runs = dualign.run(recipe)

docs/api.md has an example of each function. They are loaded when they are used: importing dualign
takes no longer than importing pathlib.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.version import __version__

if TYPE_CHECKING:
    from dualign.api import (
        compare,
        diagnose,
        evaluate,
        experiment,
        load_recipe,
        merge,
        plan,
        prepare_pairs,
        prepare_sft,
        publish,
        run,
    )


__all__ = [
    "__version__",
    "compare",
    "diagnose",
    "evaluate",
    "experiment",
    "load_recipe",
    "merge",
    "plan",
    "prepare_pairs",
    "prepare_sft",
    "publish",
    "run",
]

# In a checkout the stages lie next to this folder (sft/ is dualign.sft); in a wheel they lie inside it.
_here = Path(__file__).resolve().parent
if not (_here / "sft").is_dir():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dualign' has no attribute {name!r}")
    return getattr(import_module("dualign.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
