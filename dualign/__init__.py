"""dualign: post-train one set of weights that reasons on /think and answers at once on /no_think."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the stages lie beside this folder (sft/ is dualign.sft); in a wheel they lie inside it.
_here = Path(__file__).resolve().parent
if not (_here / "sft").is_dir():
    __path__.append(str(_here.parent))
