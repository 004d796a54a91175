"""One function for each command; each imports what it needs when it is called."""

import shlex
import shutil
from argparse import Namespace
from collections.abc import Iterator
from itertools import takewhile
from math import inf
from pathlib import Path
from textwrap import fill, indent
from typing import Literal

from dualign import api
from dualign.cli import probe
from dualign.config import nearest, parse_value, read_yaml
from dualign.data.faults import RowError
from dualign.distributed import is_main_process
from dualign.errors import ConfigError, DualignError
from dualign.recipe import Recipe, StageEntry, is_experiment
from dualign.recipe_card import CardConfig
from dualign.recipe_file import find_recipe, shipped_folder, shipped_names, shipped_recipes
from dualign.stages import stage_kind, training_kinds
from dualign.switch import Switch, read_switch


def run(args: Namespace) -> int:
    """`dualign run RECIPE`: every stage, then the report."""
    recipe = api.load_recipe(args.recipe, *args.overrides)
    finished = api.run(recipe, say=say, machine_rank=args.machine_rank)
    models = [e.name for e in recipe.stages if stage_kind(e.kind).makes_model]
    if models and len(finished) == len(recipe.stages) and is_main_process():
        folder = shlex.quote(str(recipe.output_dir / models[-1]))
        say(f"next: dualign chat {folder}, or dualign publish {folder} YOU/NAME (a dry run)")
    return 0


def plan(args: Namespace) -> int:
    """`dualign plan RECIPE`; of an experiment's file, what `dualign experiment --dry-run` shows."""
    _require_plan_options(args)
    elsewhere = args.measure or args.on is not None
    file = find_recipe(args.recipe)
    if not elsewhere and is_experiment(read_yaml(file).value):
        from dualign.experiments.start import plan_experiment

        plan_experiment(file, *args.overrides)
        return 0
    recipe = api.load_recipe(file, *args.overrides)  # refused before anything heavy is imported
    if args.on is not None:
        from dualign.cost.show_on import show_plan_on

        show_plan_on(recipe, args.on, price=args.price)
        return 0
    from dualign.cost.show import show_plan

    show_plan(recipe, measure=args.measure)
    return 0


def _require_plan_options(args: Namespace) -> None:
    """Refuse options of `plan` that say two things.

    Raises:
        ConfigError: they do.
    """
    if args.on is not None and args.measure:
        raise ConfigError("--measure trains on this machine, --on is for others: leave one out")
    if args.price is not None and args.on is None:
        raise ConfigError(
            "--price is of a card-hour: name the cards with --on, such as --on 8xH100"
        )
    if args.price is not None and not 0 <= args.price < inf:
        raise ConfigError(f"--price: expected 0 or more, found {args.price}")


def run_stage(args: Namespace, kind: str) -> int:
    """`dualign sft RECIPE`, and the other commands that run one stage of a kind."""
    from dualign import engine
    from dualign.report.live import LiveReport

    recipe = api.load_recipe(args.recipe, *args.overrides)
    stage = choose(recipe, kind, args.stage).name
    with LiveReport(recipe) as live:
        engine.run(recipe, only=stage, say=say, watch=live.stage_starts)
    return 0


def evaluate(args: Namespace) -> int:
    """`dualign eval MODEL --task TASK | --suite NAME --out DIR | --list [PATTERN]`."""
    if args.pattern is not None:
        from dualign.tasks.table import listing

        lines = list(listing(args.pattern))
        say("\n".join(lines) or f"no benchmark has {args.pattern!r} in its name")
        return 0
    args.task = [*args.task, *probe.tasks(args)]
    needed = (
        ("MODEL", args.model),
        ("--task or --suite", args.task or args.suite),
        ("--out", args.out),
    )
    if missing := [name for name, value in needed if not value]:
        raise ConfigError(f"eval: needs {', '.join(missing)}; `dualign eval --help` shows them")
    api.evaluate(
        args.model,
        args.task,
        args.out,
        rows=args.rows,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        suite=args.suite,
        budgets=_budgets(args.budgets),
        samples=args.samples,
        temperature_no_think=args.temperature_no_think,
        samples_no_think=args.samples_no_think,
        backend=args.backend,
        switch=_switch(args.switch),
        seed=args.seed,
    )
    return 0


def chat(args: Namespace) -> int:
    """`dualign chat MODEL`."""
    from dualign.generation.chat import chat as talk
    from dualign.generation.config import read_model

    if args.budget is not None and args.budget < 0:
        raise ConfigError(f"--budget: expected 0 or more tokens, found {args.budget}")
    talk(
        read_model(args.model, "MODEL"),
        mode=args.mode,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        budget=args.budget,
        switch=_switch(args.switch),
    )
    return 0


def _budgets(text: str | None) -> list[int | Literal["none"]]:
    """Return the budgets that --budgets names."""
    budgets: list[int | Literal["none"]] = []
    for part in map(str.strip, text.split(",")) if text is not None else ():
        if part != "none" and not part.isdecimal():
            raise ConfigError(
                f"--budgets: expected numbers of tokens and none, as 0,128,none; found {part!r}"
            )
        budgets.append("none" if part == "none" else int(part))
    return budgets


def _switch(text: str | None) -> Switch | None:
    """Return the switch that --switch gives as YAML."""
    return None if text is None else read_switch(parse_value(text), "--switch")


def report(args: Namespace) -> int:
    """`dualign report RECIPE`: the files, and their first table here."""
    recipe = api.load_recipe(args.recipe, *args.overrides)
    from dualign.report.report import read_models, write_report
    from dualign.report.tables import summary_table
    from dualign.terminal import wide_console

    folders = [recipe.output_dir / entry.name for entry in recipe.stages]
    write_report(recipe.output_dir, folders, title=recipe.name)
    say(f"report: {recipe.output_dir / 'report.html'}")
    if models := read_models(folders):
        wide_console().print(summary_table(models))
    return 0


def inspect(args: Namespace) -> int:
    """`dualign inspect RECIPE --stage NAME --html FILE`."""
    recipe = api.load_recipe(args.recipe, *args.overrides)
    entry = training_stage(recipe, args.stage)
    page = Path(args.html) if args.html else None
    from dualign.cost.show import show_rows

    show_rows(recipe, entry, count=args.rows, html=page)
    if page:
        say(f"rows: {page}")
    return 0


def training_stage(recipe: Recipe, name: str | None) -> StageEntry:
    """Return the training stage with a name, or the first one."""
    training = [entry for entry in recipe.stages if stage_kind(entry.kind).trains]
    if not training:
        raise ConfigError(f"{recipe.file}: has no {training_kinds()} stage")
    entry = recipe.stage(name) if name else training[0]
    if entry not in training:
        raise ConfigError(
            f"{recipe.file}: stage {entry.name} is of kind {entry.kind} and has no rows"
        )
    return entry


def doctor(args: Namespace) -> int:
    """`dualign doctor RECIPE | MODEL_DIR | DATA`: 1 if an error was found."""
    from dualign.doctor.inputs import input_kind

    kind = input_kind(args.target, recipes=shipped_names()) if args.target else "template"
    if kind != "recipe" and args.overrides:
        raise ConfigError(
            f"{args.overrides[0]}: only a recipe has keys, and {args.target} isn't one"
        )
    target = api.load_recipe(args.target, *args.overrides) if kind == "recipe" else args.target
    from dualign.doctor.show import as_json, show

    diagnosis = api.diagnose(
        target,
        template=args.template,
        tokenizer=args.tokenizer,
        max_tokens=args.max_tokens,
        split=args.split,
        switch=_switch(args.switch),
        tensors=args.tensors,
    )
    if args.json:
        say(as_json(diagnosis))
    else:
        show(diagnosis)
    return 1 if diagnosis.findings.errors else 0


def recipes(args: Namespace) -> int:
    """`dualign recipes list | show NAME | copy NAME TARGET | keys KIND`."""
    if args.what == "keys":
        say(_keys(args.name))
        return 0
    if args.what == "list":
        for path in shipped_recipes():
            say(f"{path.relative_to(shipped_folder())}\n{_purpose(path)}")
        return 0
    if not args.name:
        raise ConfigError(f"recipes {args.what}: name a recipe; `dualign recipes list` shows them")
    path = find_recipe(args.name)
    if args.what == "show":
        say(path.read_text(encoding="utf-8"))
        return 0
    target = Path(args.target or path.parent.name)
    if target.exists():
        raise ConfigError(f"{target}: is there already; name another folder")
    shutil.copytree(
        path.parent, target, ignore=shutil.ignore_patterns("__pycache__", "__init__.py")
    )
    say(f"copied to {target}; run it with: dualign run {target / path.name}")
    return 0


def _keys(kind: str | None) -> str:
    from dualign.config_reference import key_list
    from dualign.stages import config_classes
    from dualign.tasks.files import FileTask

    classes = {**config_classes(), "task": FileTask, "card": CardConfig}
    if kind is not None and kind not in classes:
        raise ConfigError(f"recipes keys: no kind of stage {kind!r}{nearest(kind, list(classes))}")
    return key_list(classes if kind is None else {kind: classes[kind]})


def _purpose(recipe: Path) -> str:
    """Return the first paragraph of a recipe's header, indented."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    paragraph = takewhile(lambda line: line.startswith("# "), lines)
    text = " ".join(line.removeprefix("# ") for line in paragraph)
    return indent(fill(text, width=100), "    ")


def advice(error: DualignError, args: Namespace) -> Iterator[str]:
    """Yield how to mend the fault of a row that stopped a command, and what counts all such rows."""
    if isinstance(error, RowError):
        from dualign.doctor.findings import explanations

        yield f"fix: {explanations()[error.code].fix}"
        yield (
            f"`dualign doctor {getattr(args, 'recipe', 'RECIPE')}` counts the rows with this and "
            "other faults; `conflicts: drop` leaves them out."
        )


def say(text: str) -> None:
    """Print a line for the user without buffering."""
    print(text, flush=True)


def choose(recipe: Recipe, kind: str, name: str | None) -> StageEntry:
    """Return the stage with a name, or the only one of a kind."""
    entries = [entry for entry in recipe.stages if entry.kind == kind]
    if name:
        entry = recipe.stage(name)
        if entry.kind != kind:
            raise ConfigError(
                f"{recipe.file}: stage {name} is of kind {entry.kind}, expected {kind}"
            )
        return entry
    if len(entries) != 1:
        names = ", ".join(entry.name for entry in entries) or "none"
        raise ConfigError(
            f"{recipe.file}: expected one stage of kind {kind}, found {names}; choose with --stage NAME"
        )
    return entries[0]
