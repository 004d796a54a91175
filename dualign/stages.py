"""The kinds of stage, in one table.

A new kind is one row of `STAGE_KINDS` and the folder that the row names. The engine, the command line, `plan`, `doctor`,
`report` and `publish` ask the row's flags and never compare names of kinds. Modules are named by text and imported when
they are needed, so reading the table imports no stage.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StageKind:
    """One kind of stage: where its code is, and what the rest of dualign asks about it."""

    name: str
    """the value of `kind` in a recipe and in run.json"""
    config: str
    """MODULE:CLASS, the frozen dataclass with the keys of the stage; light to import"""
    run: str
    """MODULE:FUNCTION, `run(stage, work, *, seed) -> Outcome`"""
    build: str = ""
    """MODULE:FUNCTION, `build(stage, source, data, tokenizer, work, *, seed) -> Trainer`, of a kind that trains"""
    check: str = ""
    """MODULE:FUNCTION, `check(stage) -> [(key, message)]`: why the stage can't run right on this machine"""
    command: str | None = None
    """the command that runs one stage of this kind, and that a launcher starts; needed if the dataclass has `launch`"""
    about: str = ""
    """the command's line in `dualign --help`"""
    trains: bool = False
    """trains a model on rows: the dataclass is a TrainingStage with `data`"""
    takes_pairs: bool = False
    """its rows are preference pairs, or rated answers: the `row_type` of the stage says which"""
    makes_model: bool = False
    """the run directory holds a model or an adapter, which can be published"""
    merges: bool = False
    """the model is made from the weights of others"""
    generates_rows: bool = False
    """the run directory holds rows that a model wrote"""
    evaluates: bool = False
    """the run directory holds metrics.json"""

    @property
    def config_class(self) -> type[Any]:
        """The dataclass of the stage. Imports its module."""
        return _resolved(self.config)  # type: ignore[no-any-return]  # a class, by the table

    @property
    def launchable(self) -> bool:
        """Whether a recipe may give the stage a `launch` configuration. Imports the dataclass."""
        return any(field.name == "launch" for field in fields(self.config_class))

    def issues(self, stage: Any) -> list[tuple[str, str]]:
        """Return why a stage can't run right on this machine, as (key, message). Reads no weights."""
        return _resolved(self.check)(stage) if self.check else []

    @property
    def runner(self) -> Callable[..., Any]:
        """The function that does the work. Imports its module, and with it what the stage needs."""
        return _resolved(self.run)  # type: ignore[no-any-return]  # a function, by the table

    @property
    def builder(self) -> Callable[..., Any]:
        """The function that makes the trainer. Imports its module."""
        return _resolved(self.build)  # type: ignore[no-any-return]  # a function, by the table


STAGE_KINDS: tuple[StageKind, ...] = (
    StageKind(
        name="script",
        config="dualign.script_stage:ScriptStage",
        run="dualign.script_stage:run",
    ),
    StageKind(
        name="sft",
        config="dualign.sft.config:SFTStage",
        run="dualign.sft.train:run",
        build="dualign.sft.train:build_trainer",
        check="dualign.retention.preflight:issues",
        command="sft",
        about="run one SFT stage (also under accelerate launch)",
        trains=True,
        makes_model=True,
    ),
    StageKind(
        name="traces",
        config="dualign.sft.config:TracesStage",
        run="dualign.sft.traces:run",
        check="dualign.sft.questions:issues",
        command="traces",
        about="make traces for rows that have none",
        generates_rows=True,
    ),
    StageKind(
        name="pairs",
        config="dualign.preference.pairs_config:PairsStage",
        run="dualign.preference.pairs:run",
        check="dualign.preference.pair_questions:issues",
        command="pairs",
        about="build preference pairs by sampling a checkpoint",
        generates_rows=True,
    ),
    StageKind(
        name="preference",
        config="dualign.preference.config:PreferenceStage",
        run="dualign.preference.train:run",
        build="dualign.preference.train:build_trainer",
        check="dualign.retention.preflight:issues",
        command="prefer",
        about="run one preference stage (also under accelerate launch)",
        trains=True,
        takes_pairs=True,
        makes_model=True,
    ),
    StageKind(
        name="merge",
        config="dualign.merging.config:MergeStage",
        run="dualign.merging.merge:run",
        check="dualign.merging.preflight:issues",
        command="merge",
        makes_model=True,
        merges=True,
    ),
    StageKind(
        name="sweep",
        config="dualign.merging.sweep.config:SweepStage",
        run="dualign.merging.sweep.sweep:run",
        check="dualign.evaluation.preflight:issues",
        command="sweep",
        makes_model=True,
        merges=True,
    ),
    StageKind(
        name="eval",
        config="dualign.evaluation.config:EvalStage",
        run="dualign.evaluation.evaluate:run",
        check="dualign.evaluation.preflight:issues",
        evaluates=True,
    ),
)


def stage_kind(name: str) -> StageKind:
    """Return the row of a kind.

    A kind without a row, such as one of a run.json that a later version wrote, has no flag set.
    """
    rows = (kind for kind in STAGE_KINDS if kind.name == name)
    return next(rows, StageKind(name=name, config="", run=""))


def training_kinds() -> str:
    """Return the names of the kinds that train, for messages: `sft or preference`."""
    return " or ".join(kind.name for kind in STAGE_KINDS if kind.trains)


def config_classes() -> dict[str, type[Any]]:
    """Return the dataclass of each kind, by its name."""
    return {kind.name: kind.config_class for kind in STAGE_KINDS}


def _resolved(reference: str) -> Any:
    """`package.module:name` -> the object of that name.

    A stage's libraries make half a million objects, all of which stay: to look for garbage among
    them takes a sixth of the time to import them.
    """
    module, _, name = reference.partition(":")
    collects = gc.isenabled()
    gc.disable()
    try:
        return getattr(import_module(module), name)
    finally:
        if collects:
            gc.enable()
