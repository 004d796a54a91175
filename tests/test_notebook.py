"""What a notebook shows: bars and tables, redrawn in their place."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dualign import terminal
from dualign.evaluation.scores import ModelScores
from dualign.notebook import Output, html_bar, html_table, in_notebook
from dualign.terminal import progress
from dualign.training.callbacks import LogLines, NotebookProgress, progress_callback


class Page:
    """What IPython's display shows: the last content of each place."""

    def __init__(self) -> None:
        self.places: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw and display_id
        place = len(self.places)
        self.places.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: self.places.__setitem__(place, bundle))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """A kernel of Jupyter, as far as dualign looks at it (a real one: test_first_run_notebook.py)."""
    page, ipython, display = Page(), ModuleType("IPython"), ModuleType("IPython.display")
    display.display = page.display  # type: ignore[attr-defined]
    ipython.display = display  # type: ignore[attr-defined]
    ipython.get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return page


def test_a_kernel_is_a_notebook_and_a_terminal_is_none(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_notebook()
    monkeypatch.setattr(
        sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace(config={"Terminal": {}})
    )
    assert not in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_a_table_is_escaped_and_its_figures_stand_on_the_right() -> None:
    html = html_table(("name", "n"), [("<b>", 3), (None, "")], caption="a & b")
    assert "<caption>a &amp; b</caption>" in html
    assert '<td style="text-align: left">&lt;b&gt;</td><td style="text-align: right">3</td>' in html
    assert "None" not in html


def test_a_bar_without_an_end_has_none() -> None:
    assert 'value="2" max="8"' in html_bar(2, 8, "x")
    assert "<progress></progress> a &lt; b" in html_bar(2, None, "a < b")


def test_a_place_is_redrawn(page: Page) -> None:
    output = Output()
    output.show("<b>1</b>", "1")
    output.show("<b>2</b>", "2")
    assert page.places == [{"text/html": "<b>2</b>", "text/plain": "2"}]


def test_progress_is_a_bar_that_stays(
    page: Page, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_DELAY", 0)
    with progress(3, "asking", unit="answer") as bar:
        for _ in range(3):
            bar.update()
    (place,) = page.places
    assert 'value="3" max="3"' in place["text/html"]
    assert place["text/plain"].startswith("asking: 3 of 3 answers, 00:0")
    assert capfd.readouterr() == ("", "")


def test_quick_and_silent_work_shows_nothing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_DELAY", 10**6)
    for silent in (False, True):
        with progress(3, "asking", silent=silent) as bar:
            bar.update(3)
    assert page.places == []


def state(step: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"global_step": step, "max_steps": 4, "is_world_process_zero": True, **more}
    )


def test_training_is_a_bar_above_a_table_of_the_modes_losses(page: Page) -> None:
    progress = progress_callback(SimpleNamespace(disable_tqdm=False))
    assert isinstance(progress, NotebookProgress)
    progress.on_train_begin(None, state(0), None)
    for step in (2, 4):
        losses = {"loss": 1 / step, "loss/think": 0.25, "loss/no_think": 2.0, "epoch": 0.5}
        progress.on_log(None, state(step), None, logs=losses)
    progress.on_log(None, state(4), None, logs={"eval_loss": 0.75})
    progress.on_log(None, state(4), None, logs={"train_runtime": 12.0})
    progress.on_train_end(None, state(4), None)
    (place,) = page.places
    html = place["text/html"]
    assert 'value="4" max="4"' in html and place["text/plain"].startswith("step 4 of 4, ")
    assert html.count("<tr>") == 3
    for text in ("loss/think", "loss/no_think", "eval_loss", ">0.5<", ">0.25<", ">0.75<"):
        assert text in html
    assert "epoch" not in html and "runtime" not in html


def test_a_long_run_shows_its_last_rows(page: Page) -> None:
    progress = NotebookProgress()
    for step in range(200):
        progress.on_log(None, state(step), None, logs={"loss": 1.0})
    html = page.places[0]["text/html"]
    assert html.count("<tr>") == 51
    assert "150 rows above these are in the stage&#x27;s log" in html
    assert 'text-align: right">199<' in html


def test_a_rank_that_is_not_the_first_shows_nothing(page: Page) -> None:
    progress = NotebookProgress()
    progress.on_log(None, state(2, is_world_process_zero=False), None, logs={"loss": 1.0})
    assert page.places == []


def test_disable_tqdm_asks_for_lines_in_a_notebook_too(page: Page) -> None:
    assert isinstance(progress_callback(SimpleNamespace(disable_tqdm=True)), LogLines)


def test_scores_are_a_table_of_both_modes() -> None:
    cells = {"accuracy": 0.5, "n": 4, "closed_rate": 1.0, "leak_rate": 0.0}
    scores = ModelScores(model="m", tasks={"sums": {"think": cells, "no_think": cells}})
    html = scores._repr_html_()
    assert html.count("<tr>") == 3
    assert "50.0 [15, 85]" in html and ">no_think<" in html and ">100<" in html
