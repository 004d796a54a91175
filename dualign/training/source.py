"""The source of installed packages as syntax trees: importing them would import torch."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def package_tree(package: str, file: str) -> ast.Module:
    """Return the syntax tree of a file of an installed package."""
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations, f"{package} is a dependency of dualign"
    source = Path(spec.submodule_search_locations[0]) / file
    return ast.parse(source.read_text(encoding="utf-8"))


def classes(package: str, file: str) -> list[ast.ClassDef]:
    """Return the classes at the top of a file."""
    return [node for node in package_tree(package, file).body if isinstance(node, ast.ClassDef)]


def annotated(node: ast.ClassDef) -> dict[str, str]:
    """Return the fields of a dataclass: name -> annotation as text."""
    return {
        item.target.id: ast.unparse(item.annotation)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def class_fields(package: str, file: str, name: str) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return tuple(next(annotated(node) for node in classes(package, file) if node.name == name))
