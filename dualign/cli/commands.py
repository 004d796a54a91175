"""One function for each command; each imports what it needs when it is called."""

import shutil
from argparse import Namespace
from itertools import takewhile
from pathlib import Path
from textwrap import fill, indent

from dualign.config import nearest
from dualign.errors import ConfigError
from dualign.recipe import Recipe, StageEntry, load_recipe
from dualign.stages import stage_kind, training_kinds


def run(given: Namespace) -> int:
    """`dualign run RECIPE`: every stage, then the report."""
    from dualign import engine

    recipe = _load(given)
    folders = engine.run(recipe, say=say)
    evaluates = any(stage_kind(entry.kind).evaluates for entry in recipe.stages)
    if evaluates or len(recipe.stages) > 1:
        _write_report(recipe, folders)
    return 0


def plan(given: Namespace) -> int:
    """`dualign plan RECIPE`."""
    from dualign.cost.show import show_plan

    show_plan(_load(given))
    return 0


def run_stage(given: Namespace, kind: str) -> int:
    """`dualign sft RECIPE`, and the other commands that run one stage of a kind."""
    from dualign import engine

    recipe = _load(given)
    engine.run(recipe, only=choose(recipe, kind, given.stage).name, say=say)
    return 0


def evaluate(given: Namespace) -> int:
    """`dualign eval MODEL --task FILE --out DIR`."""
    from dualign.evaluation.config import EvalStage
    from dualign.evaluation.evaluate import run as evaluate_stage
    from dualign.rundir import locked

    stage = EvalStage(
        name="eval",
        models=(given.model,),
        tasks=tuple(given.task),
        rows=given.rows,
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        backend=given.backend,
    )
    for key, message in stage.problems():
        raise ConfigError(f"--{key.replace('_', '-')}: {message}")
    out = Path(given.out)
    with locked(out):
        evaluate_stage(stage, out, seed=given.seed)
    return 0


def chat(given: Namespace) -> int:
    """`dualign chat MODEL`."""
    from dualign.generation.chat import chat as talk

    talk(
        given.model,
        mode=given.mode,
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
    )
    return 0


def report(given: Namespace) -> int:
    """`dualign report RECIPE`: the files, and their first table here."""
    from rich.console import Console

    from dualign.report.report import read_models
    from dualign.report.tables import summary_table

    recipe = _load(given)
    folders = [recipe.output_dir / entry.name for entry in recipe.stages]
    _write_report(recipe, folders)
    if models := read_models(folders):
        Console().print(summary_table(models))
    return 0


def inspect(given: Namespace) -> int:
    """`dualign inspect RECIPE --stage NAME --html FILE`."""
    from dualign.cost.show import show_rows

    recipe = _load(given)
    training = [entry for entry in recipe.stages if stage_kind(entry.kind).trains]
    if not training:
        raise ConfigError(f"{recipe.file}: no {training_kinds()} stage to inspect")
    entry = recipe.stage(given.stage) if given.stage else training[0]
    if entry not in training:
        raise ConfigError(f"{recipe.file}: stage {entry.name} is of kind {entry.kind}: has no rows")
    page = Path(given.html) if given.html else None
    show_rows(recipe, entry, count=given.rows, html=page)
    if page:
        say(f"rows: {page}")
    return 0


def doctor(given: Namespace) -> int:
    """`dualign doctor RECIPE | MODEL_DIR | DATA`: 1 if an error was found."""
    from dualign.doctor.inputs import input_kind

    kind = input_kind(given.target, recipes=_shipped_names())
    if kind != "recipe" and given.overrides:
        raise ConfigError(f"{given.overrides[0]}: only a recipe has keys; {given.target} is none")
    from dualign.doctor import doctor as examine
    from dualign.doctor.show import as_json, show

    if kind == "recipe":
        given.recipe = given.target
        found = examine.diagnose_recipe(_load(given))
    elif kind == "model":
        found = examine.diagnose_model(given.target)
    else:
        found = examine.diagnose_data(
            given.target,
            template=given.template,
            tokenizer=given.tokenizer,
            max_tokens=given.max_tokens,
            split=given.split,
        )
    if given.json:
        say(as_json(found))
    else:
        show(found)
    return 1 if found.findings.errors else 0


def recipes(given: Namespace) -> int:
    """`dualign recipes list | show NAME | copy NAME TARGET | keys KIND`."""
    if given.what == "keys":
        say(_keys(given.name))
        return 0
    if given.what == "list":
        for path in sorted(_shipped().glob("*/*.yaml")):
            if path.parent.name != "accelerate":
                say(f"{path.relative_to(_shipped())}\n{_purpose(path)}")
        return 0
    if not given.name:
        raise ConfigError(f"recipes {given.what}: name a recipe; `dualign recipes list` shows them")
    path = find_recipe(given.name)
    if given.what == "show":
        say(path.read_text(encoding="utf-8"))
        return 0
    target = Path(given.target or path.parent.name)
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
    from dualign.tasks import Task

    known = {**config_classes(), "task": Task}
    if kind is not None and kind not in known:
        raise ConfigError(f"recipes keys: no kind of stage {kind!r}{nearest(kind, list(known))}")
    return key_list(known if kind is None else {kind: known[kind]})


def find_recipe(name: str) -> Path:
    """A file of the user's, else a recipe that ships: `quickstart`, `smollm3/sft`, `smollm3/sft.yaml`."""
    given = Path(name)
    if given.is_file():
        return given
    for candidate in (
        _shipped() / name,
        _shipped() / f"{name}.yaml",
        _shipped() / name / "recipe.yaml",
    ):
        if candidate.is_file():
            return candidate
    known = sorted(str(path.relative_to(_shipped())) for path in _shipped().glob("*/*.yaml"))
    raise ConfigError(
        f"{name}: no such file, and no recipe of that name ships (there: {', '.join(known)})"
    )


def _purpose(recipe: Path) -> str:
    """The first paragraph of a recipe's header, indented."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    paragraph = takewhile(lambda line: line.startswith("# "), lines)
    text = " ".join(line.removeprefix("# ") for line in paragraph)
    return indent(fill(text, width=100), "    ")


def say(text: str) -> None:
    """A line for the user, at once."""
    print(text, flush=True)


def _shipped() -> Path:
    import dualign.recipes

    return Path(dualign.recipes.__path__[0])


def _shipped_names() -> list[str]:
    """What a recipe that ships may be called."""
    files = [path.relative_to(_shipped()) for path in _shipped().glob("*/*.yaml")]
    return [*(str(file.with_suffix("")) for file in files), *(file.parts[0] for file in files)]


def _load(given: Namespace) -> Recipe:
    return load_recipe(find_recipe(given.recipe), given.overrides)


def choose(recipe: Recipe, kind: str, name: str | None) -> StageEntry:
    """The stage of a kind: the one that is named, or the only one."""
    found = [entry for entry in recipe.stages if entry.kind == kind]
    if name:
        entry = recipe.stage(name)
        if entry.kind != kind:
            raise ConfigError(
                f"{recipe.file}: stage {name} is of kind {entry.kind}, expected {kind}"
            )
        return entry
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found) or "none"
        raise ConfigError(
            f"{recipe.file}: expected one stage of kind {kind}, found {names}; choose with --stage NAME"
        )
    return found[0]


def _write_report(recipe: Recipe, folders: list[Path]) -> None:
    from dualign.report.report import write_report

    write_report(recipe.output_dir, folders, title=recipe.name)
    say(f"report: {recipe.output_dir / 'report.html'}")
