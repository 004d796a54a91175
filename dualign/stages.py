"""The kinds of stage: for each its part of a recipe, and the function that does the work."""

from pathlib import Path
from typing import Any

from dualign.engine import Runner
from dualign.rundir import Outcome


def kinds() -> dict[str, type]:
    """Kind -> dataclass. Light: nothing here imports torch."""
    from dualign.evaluation.config import EvalStage
    from dualign.merging.config import MergeStage
    from dualign.merging.sweep.config import SweepStage
    from dualign.preference.config import PairsStage, PreferenceStage
    from dualign.script_stage import ScriptStage
    from dualign.sft.config import SFTStage

    return {
        "script": ScriptStage,
        "sft": SFTStage,
        "pairs": PairsStage,
        "preference": PreferenceStage,
        "merge": MergeStage,
        "sweep": SweepStage,
        "eval": EvalStage,
    }


def runners() -> dict[str, Runner]:
    """Kind -> the function that does the work; each imports its stage when called."""
    return {
        "script": _script,
        "sft": _sft,
        "pairs": _pairs,
        "preference": _preference,
        "merge": _merge,
        "sweep": _sweep,
        "eval": _eval,
    }


def _script(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.script_stage import run

    return run(stage, work, seed=seed)


def _sft(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.sft.train import run

    return run(stage, work, seed=seed)


def _pairs(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.preference.pairs import run

    return run(stage, work, seed=seed)


def _preference(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.preference.train import run

    return run(stage, work, seed=seed)


def _merge(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.merging.merge import run

    return run(stage, work, seed=seed)


def _sweep(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.merging.sweep.sweep import run

    return run(stage, work, seed=seed)


def _eval(stage: Any, work: Path, *, seed: int) -> Outcome:
    from dualign.evaluation.evaluate import run

    return run(stage, work, seed=seed)
