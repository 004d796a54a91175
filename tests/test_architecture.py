"""Rules of docs/architecture.md that can be read from the source: floors, doors, names.

Imports are read from the syntax tree, so one inside a function or under TYPE_CHECKING counts as well.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ("dualign", "sft", "preference", "merging")

# From the ground up: a module imports its own room and the rooms above this line in the list. A module belongs to
# the longest entry that its name starts with, so `dualign.data` below stands for what isn't listed by itself.
FLOORS = [
    "dualign.version",
    "dualign.errors",
    "dualign.libraries",
    "dualign.notebook",
    "dualign.terminal",
    "dualign.hashing",
    "dualign.intervals",
    "dualign.model_ref",
    "dualign.other_names",
    "dualign.licenses",
    "dualign.config",
    "dualign.config_reference",
    "dualign.verifiers",
    "dualign.switch",
    "dualign.tasks",
    "dualign.launcher",
    "dualign.machines",
    "dualign.lifetime",
    "dualign.first_failure",
    "dualign.rundir",
    "dualign.progress",
    "dualign.environment",
    "dualign.deepspeed_ops",
    "dualign.distributed",
    "dualign.script_stage",
    "dualign.recipe_card",
    "dualign.stages",
    "dualign.misspelled",
    "dualign.recipe",
    "dualign.recipe_file",
    "dualign.fingerprint",
    "dualign.roll_call",
    "dualign.stage_launch",
    "dualign.engine",
    "dualign.checkpoints",
    "dualign.attention",
    "dualign.data.conversation",
    "dualign.data.think_tags",
    "dualign.data.faults",
    "dualign.data.policies",
    "dualign.data.columns",
    "dualign.data.config",
    "dualign.data.seeds",
    "dualign.data.processes",
    "dualign.data.workers",
    "dualign.data.shards",
    "dualign.data.text",
    "dualign.data.request",
    "dualign.data.rows",
    "dualign.data.tokens",
    "dualign.data.mix",
    "dualign.data.stream",
    "dualign.data",
    "dualign.models",
    "dualign.generation",
    "dualign.retention.config",
    "dualign.judges",
    "dualign.training",
    "dualign.evaluation",
    "dualign.retention",
    "dualign.report",
    "dualign.inspect",
    "dualign.cost",
    "dualign.doctor",
    "dualign.export",
    "dualign.publish.hub",
    "dualign.publish.checklist",
    "dualign.publish.license",
    "dualign.publish.lineage",
    "dualign.publish.manifest",
    "dualign.publish.base",
    "dualign.publish.sources",
    "dualign.publish.release",
    "dualign.publish.exported",
    "dualign.publish.earlier",
    "dualign.publish.redaction",
    "dualign.publish.rows",
    "dualign.publish.card",
    "dualign.publish.checks",
    "dualign.publish",
    "dualign.sft",
    "dualign.preference.losses",
    "dualign.preference",
    "dualign.merging.methods",
    "dualign.merging.layers",
    "dualign.merging.parameters",
    "dualign.merging.config",
    "dualign.merging.tokenizer",
    "dualign.merging",
    "dualign.merging.mergekit",
    "dualign.merging.adapters",
    "dualign.merging.sweep",
    "dualign.experiments",
    "dualign.storage",
    "dualign.importing",
    "dualign.api",
    "dualign.cli",
    "dualign.__main__",
    "dualign",
]

# Names that say nothing about what they hold.
PRONOUNS = {"one", "found", "made", "given", "said", "told", "meant"}
BRITISH = re.compile(
    "licence|tokenis|quantis|normalis|colour|summaris|behaviour|initialis|labelled", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Import:
    """`line` of `importer` takes `name` (None: the module itself) from `module`."""

    importer: str
    line: int
    module: str
    name: str | None


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] in ("dualign", "tests", "benchmarks") else ("dualign", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def source() -> dict[str, Path]:
    return {module_name(path): path for name in SOURCE for path in (ROOT / name).rglob("*.py")}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


@cache
def imports(path: Path) -> list[Import]:
    """The imports of our own modules in a file."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    importer = module_name(path)
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in source():
                    yield Import(importer, node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
                folders = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*folders, base] if base else folders)
            for alias in node.names:
                if f"{base}.{alias.name}" in source():
                    yield Import(importer, node.lineno, f"{base}.{alias.name}", None)
                elif base in source():
                    yield Import(importer, node.lineno, base, alias.name)


@cache
def all_imports() -> list[Import]:
    """Every import of the source."""
    return [entry for path in source().values() for entry in imports(path)]


def room(module: str) -> str:
    entries = (entry for entry in FLOORS if f"{module}.".startswith(f"{entry}."))
    return max(entries, key=len)


def place(module: str, line: int) -> str:
    return f"{source()[module].relative_to(ROOT)}:{line}"


def circles() -> list[list[str]]:
    """Groups of files of which each imports each, over others (Tarjan's strong components)."""
    targets: dict[str, set[str]] = {module: set() for module in source()}
    for entry in all_imports():
        targets[entry.importer].add(entry.module)
    reachable: dict[str, set[str]] = {}
    for module in targets:
        reachable[module], queue = set(), [module]
        while queue:
            for target in targets[queue.pop()] - reachable[module]:
                reachable[module].add(target)
                queue.append(target)
    groups = {
        frozenset(other for other in reachable[module] if module in reachable[other])
        for module in targets
        if module in reachable[module]
    }
    return sorted(sorted(group) for group in groups)


def test_no_file_imports_itself_over_others() -> None:
    assert not circles()


def test_no_room_imports_a_higher_one() -> None:
    floors = {entry: number for number, entry in enumerate(FLOORS)}
    climbs = [
        f"{place(entry.importer, entry.line)} imports {entry.name or 'the module'} of "
        f"{entry.module}: {room(entry.importer)} is on a lower floor than {room(entry.module)}"
        for entry in all_imports()
        if floors[room(entry.module)] > floors[room(entry.importer)]
    ]
    assert not climbs, "\n".join(["", *climbs])


def test_every_floor_has_a_room() -> None:
    rooms = {room(module) for module in source()}
    assert [entry for entry in FLOORS if entry not in rooms] == []


def bound_names(path: Path) -> Iterator[tuple[str, int]]:
    """Variables, fields and parameters."""
    for node in nodes(path):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno


def defined_names(path: Path) -> Iterator[tuple[str, int]]:
    """All names that a file defines, its own included."""
    yield path.stem, 0
    yield from bound_names(path)
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def test_variables_are_nouns() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in source().values()
        for name, line in bound_names(path)
        if name in PRONOUNS
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_no_variable_of_the_tests_is_named_one() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("tests", "benchmarks", "recipes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line in bound_names(path)
        if name == "one"
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_identifiers_are_american() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in [*source().values(), *sorted((ROOT / "tests").rglob("*.py"))]
        for name, line in defined_names(path)
        if BRITISH.search(name)
    ]
    assert not wrong, "\n".join(["", *wrong])


@cache
def arrows() -> set[tuple[str, str]]:
    """(importer, module) of the source, with the modules that are imported by a text `module:name`."""
    references = {(entry.importer, entry.module) for entry in all_imports()}
    for importer, path in source().items():
        for node in nodes(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = re.findall(r"(dualign[\w.]+):\w", node.value)
                references |= {(importer, name) for name in names if name in source()}
    return references


def doors(package: str) -> list[str]:
    """The modules of a package that the source outside of it imports."""
    return sorted(
        {
            module.rpartition(".")[2]
            for importer, module in arrows()
            if module.rpartition(".")[0] == package
            and source()[module].name != "__init__.py"
            and not f"{importer}.".startswith(f"{package}.")
        }
    )


def test_every_package_has_a_docstring_and_names_its_doors() -> None:
    """`__all__` of a package: those of its modules that other packages import."""
    for package, path in source().items():
        if path.name != "__init__.py" or package == "dualign":
            continue
        file = tree(path)
        named = [
            ast.literal_eval(node.value)
            for node in file.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert ast.get_docstring(file), f"{package}: a line that says what the package is"
        assert named == [doors(package)], package


def public_names(path: Path) -> Iterator[tuple[str, int]]:
    """What a module defines at its top without an underscore; a logger and the main of a script apart."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        for name in names:
            if not name.startswith("_") and name not in ("logger", "main"):
                yield name, node.lineno


def in_signatures(path: Path) -> set[str]:
    """Types that a module's public functions, classes and fields name: whoever calls them meets these."""
    names = set()
    for node in tree(path).body:
        public = not str(getattr(node, "name", "_")).startswith("_") or isinstance(
            node, ast.AnnAssign
        )
        for part in ast.walk(node) if public else ():
            if isinstance(part, ast.arg | ast.AnnAssign) and part.annotation:
                names |= set(re.findall(r"\w+", ast.unparse(part.annotation)))
            elif isinstance(part, ast.FunctionDef) and part.returns:
                names |= set(re.findall(r"\w+", ast.unparse(part.returns)))
            elif isinstance(part, ast.ClassDef):
                names |= {ast.unparse(base) for base in part.bases}
    return names


def used_names(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of what a file takes from our modules, by import, as an attribute or in a text `module:name`."""
    modules = {}
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    places = {entry.module.rpartition(".")[2]: entry.module for entry in imports(path)}
    yield from ((entry.module, entry.name) for entry in imports(path) if entry.name)
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield places.get(modules.get(node.value.id, ""), ""), node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from named_in(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            module, name = (ast.unparse(argument).strip("'") for argument in node.args[:2])
            yield places.get(modules.get(module, ""), ""), name


def named_in(text: str) -> Iterator[tuple[str, str]]:
    """(module, name) of `module:name`, `module.name` and `from module import name` in a text."""
    yield from re.findall(r"([\w.]+)[:.](\w+)", text)
    for module, names in re.findall(r"from (dualign[\w.]*) import ([\w, ]+)", text):
        yield from ((module, name.strip()) for name in names.split(","))


def test_what_nobody_imports_has_an_underscore() -> None:
    """Tables that CONTRIBUTING.md names are for everybody."""
    used: dict[str, set[str]] = {}
    folders = (*SOURCE, "tests", "benchmarks", "recipes")
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for module, name in used_names(path):
            used.setdefault(module, set()).add(name)
    tables = set(re.findall(r"`(\w+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for module, path in source().items()
        if module != "dualign"
        for name, line in public_names(path)
        if name not in used.get(module, set()) | used.get(module.rpartition(".")[2], set())
        and name not in in_signatures(path) | tables
    ]
    assert not wrong, "\n".join(["", *wrong])
