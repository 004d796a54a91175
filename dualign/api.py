"""The functions of `import dualign`: the commands, with typed results (examples: docs/api.md)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign import engine
from dualign.distributed import is_main_process
from dualign.errors import ConfigError
from dualign.experiments.start import experiment
from dualign.libraries import import_bars, quiet_libraries
from dualign.notebook import in_notebook
from dualign.publish.start import PublishResult, publish
from dualign.recipe import Recipe
from dualign.recipe import load_recipe as load_recipe_file
from dualign.recipe_file import find_recipe, shipped_names
from dualign.rundir import RUN_JSON, locked
from dualign.stages import stage_kind
from dualign.switch import Switch, read_switch

if TYPE_CHECKING:
    from dualign.cost.show import Plan
    from dualign.data.config import DataConfig
    from dualign.data.prepare import PairData, SFTData
    from dualign.doctor.doctor import Diagnosis
    from dualign.evaluation.scores import ModelScores
    from dualign.generation.config import Backend, Endpoint
    from dualign.report.compare import Comparison
    from dualign.report.runs import StageRun

__all__ = [
    "MergeResult",
    "PublishResult",
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


if in_notebook():  # where all that is printed stays on the page
    quiet_libraries()
    import_bars()


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeResult:
    """A merged model's folder, and what its merge.json says."""

    folder: Path
    record: Mapping[str, Any]


def load_recipe(path: str | Path, *overrides: str) -> Recipe:
    """Read a recipe and check all of it. Nothing heavy is imported.

    Args:
        path: a YAML file, a folder with recipe.yaml, or the name of a recipe that ships, such as `quickstart`.
        overrides: keys to set, as on the command line: `sft.train.learning_rate=5e-4`.

    Returns:
        The recipe; `recipe.stage("sft").config` holds the keys of a stage as a dataclass.

    Raises:
        ConfigError: with every problem of the file and the overrides, by file and line.
    """
    return load_recipe_file(find_recipe(path), overrides)


def run(
    recipe: Recipe | str | Path,
    *,
    only: str | None = None,
    say: Callable[[str], None] = print,
    machine_rank: int | None = None,
) -> "dict[str, StageRun]":
    """Run the stages of a recipe in order, as `dualign run` does, and write the report, also while it goes on.

    Finished stages are skipped, and one that was interrupted is resumed.

    Args:
        recipe: a recipe, or what `load_recipe` takes.
        only: the name of one stage to run; its parents must be finished.
        say: gets a line when a stage starts and ends.
        machine_rank: the number of this machine of several, where no scheduler says it (docs/distributed.md).

    Returns:
        Each finished stage by name: its folder `path`, run.json as `record`, log and metrics.

    Raises:
        DualignError: a stage was refused or failed; finished stages stay.
    """
    from dualign.report.live import LiveReport
    from dualign.report.report import PAGE, write_report
    from dualign.report.runs import read_stage

    recipe = _loaded(recipe)
    evaluates = any(stage_kind(entry.kind).evaluates for entry in recipe.stages)
    reports = only is None and (evaluates or len(recipe.stages) > 1)
    with LiveReport(recipe, report_follows=reports) as live:
        folders = engine.run(
            recipe, only=only, say=say, watch=live.stage_starts, machine_rank=machine_rank
        )
        live.stop()
        finished = all((folder / RUN_JSON).is_file() for folder in folders)  # else one was paused
        if reports and folders and finished and is_main_process():
            write_report(recipe.output_dir, folders, title=recipe.name)
            say(f"report: {recipe.output_dir / PAGE}")
    return {folder.name: read_stage(folder) for folder in folders if (folder / RUN_JSON).is_file()}


def plan(recipe: Recipe | str | Path, *, measure: bool = False) -> "Plan":
    """Return what a run would do: each stage's state, and rows, tokens, steps, memory and time of
    the stages that train. Nothing is written; rows of stages that are ready to start are prepared.

    Args:
        recipe: a recipe, or what `load_recipe` takes.
        measure: train a few steps of each stage that isn't done, and reckon its time from them.

    Returns:
        A tuple of the stages' plans, in order. What depends on a stage that hasn't run is None.

    Raises:
        DualignError: the recipe or its data can't be used.
    """
    from dualign.cost.plan import plan_stage
    from dualign.cost.show import Plan

    recipe = _loaded(recipe)
    stages = engine.require_runnable(recipe, engine.statuses(recipe, remember=False))
    return Plan(plan_stage(recipe, status, stages, measure=measure) for status in stages)


def prepare_sft(
    data: "DataConfig | Mapping[str, Any] | str | Path",
    *,
    model: str,
    template: str = "dualign",
    template_kwargs: Mapping[str, Any] | None = None,
    switch: Switch | Mapping[str, Any] | None = None,
    seed: int = 42,
) -> "SFTData":
    """Render, mask, tokenize and pack rows as an SFT stage does.

    Args:
        data: the keys of `data` in a recipe as a mapping or a DataConfig, or one file, folder, glob
            or Hub dataset.
        model: the model whose tokenizer is used: a folder, Hub id or `embedded:...`.
        template: the chat template, by name or as a .jinja file.
        template_kwargs: arguments of the template for every row, such as `date`.
        switch: what switches the modes, as in `evaluate`.
        seed: the seed of shuffling and sampling.

    Returns:
        Packed rows as `train` and `validation`, and the count of rows and tokens as `rows`.

    Raises:
        ConfigError: a key of `data` is wrong.
        DataError: a source can't be read, or a row contradicts itself.
        TemplateError: the supervised text of a row can't be proven under the template.
    """
    from dualign.data.prepare import prepare_sft as prepare
    from dualign.models.data_request import load_data_request

    return prepare(load_data_request(data, model, template, template_kwargs, switch, seed=seed))


def prepare_pairs(
    data: "DataConfig | Mapping[str, Any] | str | Path",
    *,
    model: str,
    template: str = "dualign",
    template_kwargs: Mapping[str, Any] | None = None,
    switch: Switch | Mapping[str, Any] | None = None,
    seed: int = 42,
) -> "PairData":
    """Render and tokenize preference pairs as a preference stage does.

    Args and errors are those of `prepare_sft`; packing and `supervise` don't apply.

    Returns:
        Pairs as `train` and `validation` (prompt_ids, chosen_ids, rejected_ids), and `rows`.
    """
    from dualign.data.prepare import prepare_pairs as prepare
    from dualign.models.data_request import load_data_request

    return prepare(load_data_request(data, model, template, template_kwargs, switch, seed=seed))


def evaluate(
    model: "str | Path | Endpoint | Mapping[str, Any]",
    tasks: Sequence[str | Path],
    out: str | Path,
    *,
    rows: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    suite: str | None = None,
    backend: "Backend" = "transformers",
    switch: Switch | Mapping[str, Any] | None = None,
    seed: int = 42,
    **keys: Any,
) -> "ModelScores":
    """Ask a model every task in think and in no_think mode.

    Args:
        model: a run directory, model or adapter folder, Hub id, or endpoint (docs/endpoints.md).
        tasks: task files.
        out: the folder of the results; answers that an interrupted run left there are kept.
        rows: at most this many rows of each task, drawn by the seed.
        max_new_tokens: the limit of an answer, thinking included; None: the suite's, else 512.
        temperature: 0 is greedy; None: the suite's, else 0.
        top_p: sample from the likeliest tokens of this probability; None: the suite's, else 1.
        suite: a suite of benchmarks by name (docs/benchmarks.md), asked before the tasks.
        backend: `vllm` must be installed.
        switch: what switches the modes, as in a recipe; None: what the template reads; {}: none.
        seed: the seed of drawing rows and of sampling.
        keys: other keys of an eval stage (docs/evaluation.md), such as `samples` and `budgets`.

    Returns:
        The scores: `scores.score(task, mode)` is an accuracy with its interval.

    Raises:
        ConfigError: an argument is out of range.
        DualignError: the model or a task can't be read.
    """
    from dualign.evaluation.config import EvalStage
    from dualign.evaluation.evaluate import run as evaluate_stage
    from dualign.evaluation.scores import read_scores
    from dualign.generation.config import read_model
    from dualign.tasks.suites import with_suite

    settings = {
        "rows": rows,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "suite": suite,
    }
    chosen = {key: value for key, value in settings.items() if value is not None}
    asked = with_suite({**keys, **chosen, "tasks": list(map(str, tasks))})
    others: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in asked.items()}
    stage = EvalStage(
        name="eval",
        models=(read_model(model, "model"),),
        backend=backend,
        switch=read_switch(switch, "switch"),
        **others,
    )
    if problems := [f"{key}: {message}" for key, message in stage.problems()]:
        raise ConfigError("\n".join(problems))
    with locked(Path(out)):
        metrics = evaluate_stage(stage, Path(out), seed=seed).metrics
    return read_scores(metrics, where=str(Path(out) / "metrics.json"))[0]


def compare(
    before: str | Path, after: str | Path, *, html: str | Path | None = None
) -> "Comparison":
    """Compare two evaluated models problem by problem: accuracy, and what turned right or wrong.

    Args:
        before: the folder of an evaluation, a run with evaluation stages, a model's folder in such a
            run, or `RUN:MODEL`; without a name, the last model that was evaluated.
        after: the model that is compared with it, named likewise.
        html: a file for a page with all problems, the answers of both side by side, and filters.

    Returns:
        The tasks that both were asked, each in both modes: scores, change with its interval, p, and
        `problems` with the answers of both; `notes()` says what isn't compared.

    Raises:
        DualignError: a folder is no evaluation, or the models share no problem.
    """
    from dualign.report.compare import compare as compare_models
    from dualign.report.compare_pages import write_comparison

    comparison = compare_models(before, after)
    if html is not None:
        write_comparison(comparison, Path(html))
    return comparison


def merge(
    config: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    force: bool = False,
) -> MergeResult:
    """Merge models as a file in mergekit's form says; `out` is there when all of it is written.

    Args:
        config: the YAML file.
        out: the folder to write.
        seed: the seed of the methods that draw at random.
        threads: how many to use; None: one for each processor.
        force: replace `out` if it is there.

    Returns:
        The folder and what its merge.json says: hashes, parameters, versions.

    Raises:
        ConfigError, MergeError: the file is wrong, or its models don't fit; nothing is written.
        CheckpointError: a model can't be read, or `out` is there and `force` is false.
    """
    from dualign.merging.mergekit.load import load
    from dualign.merging.output import merge_into

    record = merge_into(load(Path(config)), Path(out), seed=seed, threads=threads, force=force)
    return MergeResult(folder=Path(out), record=record)


def diagnose(
    target: Recipe | str | Path | None = None,
    *,
    template: str | None = None,
    tokenizer: str | None = None,
    max_tokens: int = 2048,
    split: str = "train",
    switch: Switch | Mapping[str, Any] | None = None,
    tensors: bool = False,
) -> "Diagnosis":
    """Examine a recipe, a saved model, or data, as `dualign doctor` does. Nothing is trained.

    Args:
        target: a recipe; a model, adapter or run directory; a data file, folder, glob, Hub dataset;
            None: the template alone is tried on rows of ten kinds.
        template: the chat template for data; None: dualign, or without data the tokenizer's own.
        tokenizer: the model folder whose tokenizer is used for data; None: the embedded model's.
        max_tokens: the length of a packed row, for data.
        split: the split of a Hub dataset.
        switch: what switches the modes, for data and a template alone, as in `evaluate`.
        tensors: read all weights of a saved model, for NaN and infinite values.

    Returns:
        The findings, each with its meaning and what to do, and the count of rows.

    Raises:
        ConfigError: the target isn't there, or is a recipe without a training stage; nothing is named.
    """
    from dualign.doctor import doctor
    from dualign.doctor.inputs import input_kind

    modes = read_switch(switch, "switch")
    if target is None:
        return doctor.diagnose_template(template, tokenizer=tokenizer, switch=modes)
    names = shipped_names()
    kind = "recipe" if isinstance(target, Recipe) else input_kind(str(target), recipes=names)
    if kind == "recipe":
        return doctor.diagnose_recipe(_loaded(target))
    if kind == "model":
        return doctor.diagnose_model(str(target), tensors=tensors)
    return doctor.diagnose_data(
        str(target),
        template=template or "dualign",
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        split=split,
        switch=modes,
    )


def _loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
