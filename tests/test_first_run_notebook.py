"""docs/notebooks/first_run.ipynb: what is committed was executed, and runs in small here.

Its cells run in this process, on a tiny model, which takes seconds; a kernel of Jupyter runs all of it
under `slow`, where nbclient and ipykernel are installed. test_notebook.py says what is shown there.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.chat_model import make_model, make_tokenizer

DOCS = Path(__file__).parents[1] / "docs"
FILE = DOCS / "notebooks" / "first_run.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SMALL = 'MODEL = "base"\nPROBLEMS = 16\nSTEPS = 2\nASKED = 2'


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def outputs() -> list[dict[str, Any]]:
    return [output for cell in CODE for output in cell["outputs"]]


def test_it_is_a_small_notebook_of_version_4() -> None:
    assert FILE.stat().st_size < 300_000
    assert NOTEBOOK["nbformat"] == 4
    ids = [cell["id"] for cell in CELLS]
    assert len(set(ids)) == len(ids)


def test_it_was_executed_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output["output_type"] for output in outputs()} <= {
        "execute_result",
        "display_data",
        "stream",
    }
    assert not [output for output in outputs() if output.get("name") == "stderr"]


def test_it_shows_a_bar_tables_a_curve_and_both_modes() -> None:
    shown = [output.get("data", {}) for output in outputs()]
    html = ["".join(data.get("text/html", "")) for data in shown]
    assert any("<progress" in text and "loss/think" in text for text in html)
    assert sum("<table>" in text for text in html) >= 5
    assert sum("image/png" in data for data in shown) == 1
    assert_both_modes_answer(CODE[-1])


def assert_both_modes_answer(cell: dict[str, Any]) -> None:
    printed = "".join("".join(output["text"]) for output in cell["outputs"])
    think, no_think = printed.split("--- no_think\n")
    assert "</think>" in think and "think>" not in no_think


def test_its_outputs_name_no_folder_of_a_person() -> None:
    assert not re.search(r"/(root|home|tmp|work|Users)/", json.dumps(outputs()))


def test_its_links_lead_somewhere() -> None:
    text = "\n".join(source(cell) for cell in CELLS if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) >= 4
    assert not [link for link in links if not (FILE.parent / link).is_file()]


def test_the_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer, width=16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict[str, Any] = {}
    tables = 0
    for number, cell in enumerate(CODE):
        is_parameters = "parameters" in cell["metadata"].get("tags", ())
        tree = ast.parse(SMALL if is_parameters else source(cell))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{FILE.name}, cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), FILE.name, "eval"), names)
            if hasattr(value, "_repr_html_"):
                tables += 1
                assert value._repr_html_().count("<tr>") >= 2
    assert tables == 5, "rows, findings, plan, stage, scores"
    assert names["stages"]["sft"].record["metrics"]


@pytest.mark.slow
def test_a_kernel_runs_all_of_it(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    notebook = nbformat.read(FILE, 4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, resources=resources).execute()
    assert_both_modes_answer(notebook.cells[-2])
