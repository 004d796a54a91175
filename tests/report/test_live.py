"""report.html while a run goes on: what it shows, that it reloads itself, and how it ends."""

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import dualign
from dualign import engine
from dualign.errors import DualignError
from dualign.lifetime import LAUNCHER_PID
from dualign.progress import Progress
from dualign.recipe import Recipe
from dualign.report.blocks import Details, ProgressBar, Section
from dualign.report.live import LiveReport
from dualign.report.live_page import Ending, LiveRun, LiveStage, finished_sections, live_page
from dualign.report.render import render_html
from dualign.report.runs import StageRun, latest_rows, read_stage, read_unfinished

from .browser import CHROMIUM, Browser
from .conftest import ATTACK, write_rows
from .test_report import Page
from .test_retention import ANSWERS, MEASUREMENTS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
# A script sees the page of its own run, which is written when its stage starts.
LOOKS = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[2])
page = out.parent / "report.html"
end = time.monotonic() + 60
while "SECOND: running" not in (page.read_text() if page.exists() else "") and time.monotonic() < end:
    time.sleep(0.02)
(out / "seen.html").write_text(page.read_text())
"""


def unfinished(folder: Path, logged: list[dict]) -> LiveStage:
    """A training stage with its log so far, and retained scores."""
    work = folder / ".apo.partial"
    work.mkdir()
    write_rows(work / "log.jsonl", logged)
    write_rows(work / "retention.jsonl", ANSWERS)
    (work / "retention.json").write_text(json.dumps({"measurements": MEASUREMENTS}))
    figures = {"loss": 0.5, "loss/think": 0.4, "tokens_per_second": 1234.0, "memory_mb": 3072}
    progress = Progress(unit="step", done=40, total=100, seconds=80.0, figures=figures)
    run = read_unfinished(work, name="apo", kind="preference")
    return LiveStage(name="apo", kind="preference", state="running", run=run, progress=progress)


@pytest.fixture(scope="module")
def running(pipeline: list[Path], tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    """The made-up pipeline in its fourth stage."""
    logged = [json.loads(line) for line in (pipeline[3] / "log.jsonl").open()]
    logged = [{**row, "learning_rate": 1e-6 * row["step"]} for row in logged]
    done = [
        LiveStage(name=path.name, kind="sft", state="done", run=read_stage(path))
        for path in pipeline[:3]
    ]
    current = unfinished(tmp_path_factory.mktemp("live"), logged)
    left = [LiveStage(name=name, kind="eval", state="to do") for name in ("merged", "test")]
    return LiveRun(
        title="Demo",
        stages=(*done, current, *left),
        since=NOW - timedelta(minutes=3),
        now=NOW,
        refresh_seconds=10,
    )


@pytest.fixture(scope="module")
def html(running: LiveRun) -> str:
    return render_html(live_page(running, finished_sections(running.finished)))


def test_page_says_what_runs_what_is_done_and_what_is_left(html: str) -> None:
    text = Page(html).text
    assert "Demo: apo running 40 %" in text
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html))
    assert facts["Stage"] == "apo (preference), 4 of 6"
    assert facts["So far"] == "step 40 of 100"
    assert facts["Time left in this stage"] == "about 2 min 00 s"
    assert facts["Time"] == "3 min 00 s"
    assert (facts["Tokens a second"], facts["Memory, peak"]) == ("1,234", "3.00 GiB")
    states = re.findall(r"<tr><td[^>]*>(\w+)</td><td[^>]*>\w+</td><td[^>]*>([^<]*)</td>", html)
    assert dict(states) == {
        **dict.fromkeys(("data", "sft", "pairs"), "done"),
        "apo": "running",
        **dict.fromkeys(("merged", "test"), "to do"),
    }


def test_unfinished_stage_has_curves_of_both_modes_retained_scores_and_answers(html: str) -> None:
    now = html[html.index('<section id="now">') :]
    now = now[: now.index("</section>")]
    pictures = re.findall(r'aria-label="([^"]+)"', now)
    assert pictures == [
        "step 40 of 100",
        "apo: loss by step",
        "apo: rewards, training, by step",
        "apo: rewards, validation, by step",
        "apo: margins, training, by step",
        "apo: margins, validation, by step",
        "apo: chosen above rejected, training, by step",
        "apo: chosen above rejected, validation, by step",
        "apo: learning rate by step",
        "apo: accuracy on sums by step",
    ]
    for part in ("rewards/margins/no_think", "beyond the bound: sums", "1+1?", "at 100"):
        assert part in now
    assert now.count('class="answer think"') == now.count('class="answer no_think"') == 2
    assert 'aria-label="sft: loss by step"' in html, "finished stages have theirs below"


def test_page_reloads_itself_and_asks_nobody(html: str) -> None:
    page = Page(html)
    assert html.startswith("<!doctype html>\n<html lang=") and page.tags.count("h1") == 1
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in html
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None and policy[1].startswith("default-src 'none'")
    assert page.tags.count("script") == 1 and "fetch(" not in html
    links = [value or "" for name, value in page.attributes if name in ("href", "src")]
    assert all(link.startswith("#") for link in links)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "ending", [None, Ending(state="failed", text=ATTACK)], ids=["paused", "failed"]
)
def test_last_page_stays_as_it_is(running: LiveRun, ending: Ending | None) -> None:
    from dataclasses import replace

    state = ending.state if ending else "paused at step 40"
    stages = tuple(
        replace(stage, state=state) if stage.is_current else stage for stage in running.stages
    )
    run = replace(running, stages=stages, ending=ending, refresh_seconds=0)
    html = render_html(live_page(run, ()))
    assert "refresh" not in html[: html.index("<style>")] and "<script" not in html
    assert f"Demo: apo {state} (40 %)" in html and "Time left" not in html
    assert ("What went wrong" in html) == bool(ending)
    Page(html)


def test_stage_that_asks_shows_its_last_answers(tmp_path: Path) -> None:
    rows = [{"key": str(n), "generated": f"<think>{n}</think> {ATTACK}"} for n in range(9)]
    write_rows(tmp_path / "samples.jsonl", [*rows, {"key": "9", "likelihoods": []}])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"key": "half", "genera')
    run = read_unfinished(tmp_path, name="test", kind="eval")
    progress = Progress(unit="answer", done=9, total=20, seconds=3, doing="answers of sft")
    stage = LiveStage(name="test", kind="eval", state="running", run=run, progress=progress)
    page = live_page(LiveRun(title="t", stages=(stage,), since=NOW, now=NOW), ())
    now = page.sections[-1]
    (bar,) = (block for block in now.blocks if isinstance(block, ProgressBar))
    assert bar.text == "answers of sft: 9 of 20"
    shown = [block.text for block in now.blocks if isinstance(block, Details)]
    assert [text[7] for text in shown] == ["8", "7", "6"]
    Page(render_html(page))


def test_files_that_grow_are_read_without_their_half_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(
        '{"step": 1, "loss": 2}\n{"step": 2, "x": "é'.encode()[:-1]
    )
    run = read_unfinished(tmp_path, name="sft", kind="sft")
    assert run.log == ({"step": 1, "loss": 2},)
    assert latest_rows(tmp_path / "none.jsonl", 4) == ()


def recipe(folder: Path, *scripts: str) -> Recipe:
    """Script stages named after their place."""
    names = ["FIRST", "SECOND", "THIRD"][: len(scripts)]
    for name, script in zip(names, scripts, strict=True):
        (folder / f"{name}.py").write_text(script)
    stages = [{"name": name, "kind": "script", "script": f"{name}.py"} for name in names]
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({"name": "t", "output_dir": str(folder / "out"), "stages": stages}))
    return dualign.load_recipe(file)


def shown_states(page: str) -> dict[str, str]:
    cells = re.findall(r"<tr><td[^>]*>(\w+)</td><td[^>]*>script</td><td[^>]*>([^<]*)</td>", page)
    return dict(cells)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run that looks for what changed without waiting."""
    monkeypatch.setattr("dualign.report.live._SECONDS", 0.05)
    yield


def test_page_is_there_while_a_run_goes_on_and_tells_how_it_failed(
    tmp_path: Path, quick: None
) -> None:
    looks = LOOKS.replace("SECOND: running", "SECOND running")
    made = recipe(tmp_path, "", looks, "raise SystemExit('no <such> thing')")
    with pytest.raises(DualignError):
        dualign.run(made, say=lambda text: None)
    seen = (tmp_path / "out" / "SECOND" / "seen.html").read_text()
    assert shown_states(seen) == {"FIRST": "done", "SECOND": "running", "THIRD": "to do"}
    assert 'id="live"' in seen
    last = (tmp_path / "out" / "report.html").read_text()
    assert shown_states(last) == {"FIRST": "done", "SECOND": "done", "THIRD": "failed"}
    assert "What went wrong" in last and "stage THIRD" in last
    assert 'id="live"' not in last and "<script" not in last
    assert not [*(tmp_path / "out").glob(".*.new")]


@pytest.mark.parametrize("step", [None, 12])
def test_interrupted_run_says_what_resumes_it(
    tmp_path: Path, quick: None, step: int | None
) -> None:
    """Ctrl-C is no fault."""
    made = recipe(tmp_path, "", "")
    made.output_dir.mkdir()
    with pytest.raises(KeyboardInterrupt), LiveReport(made, report_follows=True) as live:
        first, second = engine.statuses(made)
        live.stage_starts(second, [first, second])
        work = tmp_path / "out" / ".SECOND.partial"
        if step is not None:
            checkpoint = work / "checkpoints" / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "complete").touch()
        raise KeyboardInterrupt
    page = (tmp_path / "out" / "report.html").read_text()
    assert "t: SECOND interrupted" in page and "What went wrong" not in page
    assert shown_states(page) == {"FIRST": "to do", "SECOND": "interrupted"}
    assert "Run the same command again" in page
    assert ("checkpoint of step 12" in page) == (step == 12)


def test_finished_run_has_the_report_and_skipped_stages_touch_nothing(tmp_path: Path) -> None:
    made = recipe(tmp_path, "", "")
    dualign.run(made, say=lambda text: None)
    page = tmp_path / "out" / "report.html"
    assert "<title>t</title>" in page.read_text() and 'id="live"' not in page.read_text()
    page.write_text("mine")
    dualign.run(made, only="SECOND", say=lambda text: None)
    assert page.read_text() == "mine", "nothing was started"


def test_finished_stages_are_read_and_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that costs a second for them isn't followed by a hundred seconds without one."""
    made = recipe(tmp_path, "", "")
    engine.run(made, only="FIRST", say=lambda text: None)
    read: list[str] = []

    def drawn(stages: list[StageRun]) -> tuple[Section, ...]:
        read.extend(stage.name for stage in stages)
        end = time.thread_time() + 0.15  # a hundred times that is more than 10 s
        while time.thread_time() < end:
            pass
        return (Section(name="first", title="Drawn", blocks=()),)

    monkeypatch.setattr("dualign.report.live_page.finished_sections", drawn)
    live = LiveReport(made)
    live._stages = engine.statuses(made)
    live._current = live._stages[1]
    page = made.output_dir / "report.html"
    pauses: list[float | None] = []

    class TwoPages(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert shown_states(page.read_text()) == {"FIRST": "done", "SECOND": "running"}
            assert "Drawn" in page.read_text()
            page.unlink()
            pauses.append(timeout)
            if len(pauses) == 2:
                live.stop()
            return True

    live._wake = TwoPages()
    live._watch()
    assert read == ["FIRST"] and pauses[0] == 10


def test_end_of_a_run_is_never_slept_through(tmp_path: Path) -> None:
    live = LiveReport(recipe(tmp_path, ""))

    class EndsBefore(threading.Event):
        """A call that the run makes at its end comes just before this one is forgotten."""

        def clear(self) -> None:
            live.stop()
            super().clear()

        def wait(self, timeout: float | None = None) -> bool:
            assert self.is_set() or not live._over.is_set(), "nobody calls again"
            return super().wait(0)

    live._wake = EndsBefore()
    live._watch()


def test_page_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = recipe(tmp_path, "")
    (tmp_path / "out" / "report.html" / "in the way").mkdir(parents=True)
    assert [*dualign.run(made, say=lambda text: None)] == ["FIRST"]
    assert caplog.text.count("the page of the run can't be written") == 1


def test_process_of_a_launch_leaves_the_page_to_its_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHER_PID, "1")
    with LiveReport(recipe(tmp_path, "")) as live:
        live.stage_starts(None, [])  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_it_fits_reloads_and_keeps_place_and_focus(
    running: LiveRun, tmp_path: Path, width: int
) -> None:
    from dataclasses import replace

    page = tmp_path / "report.html"
    answers = tuple(
        {"key": str(n), "generated": f"answer {n}\n" * 40, "finished": True} for n in range(4)
    )
    current = running.current
    assert current is not None and current.run is not None
    write_rows(current.run.path / "samples.jsonl", answers)
    sections = finished_sections(running.finished)
    hold = "document.getElementById('hold')"

    def write(title: str, seconds: int) -> None:
        run = replace(running, title=title, refresh_seconds=seconds, now=datetime.now(UTC))
        aside = page.with_name("aside")
        aside.write_text(render_html(live_page(run, sections)))
        aside.replace(page)

    write("one", 600)
    with Browser(tmp_path / "profile") as browser:
        browser.open(page, width)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        # Every link, the button and each folded text is reached by Tab, and the focus is seen.
        reached = []
        for _ in range(browser.ask("document.querySelectorAll('a, button, summary').length")):
            browser.press("Tab")
            reached.append(browser.ask("document.activeElement.textContent"))
            style = browser.ask("getComputedStyle(document.activeElement).outlineStyle")
            assert style == "solid", reached[-1]
        assert {"Stages", "Now: apo", "Hold this page"} <= set(reached)
        assert any(text.startswith("Answer 1:") for text in reached)
        # A page that is held stays so. Enter opens a folded text.
        browser.ask(f"{hold}.focus()")
        browser.press("Enter")
        browser.open(page, width)
        assert browser.ask(f"{hold}.getAttribute('aria-pressed')") == "true"
        browser.ask("document.querySelector('summary').focus()")
        browser.press("Enter")
        assert browser.ask("document.querySelector('details').open")
        browser.ask("document.querySelector('summary').scrollIntoView()")
        place = browser.ask("scrollY")
        assert place > 0
        # When it goes on it loads itself again, by itself, and place and opened text stay.
        write("two", 1)
        browser.ask(f"{hold}.click()")
        browser.wait("document.title.startsWith('two') && document.readyState === 'complete'")
        write("six", 600)
        browser.wait("document.title.startsWith('six') && document.readyState === 'complete'")
        assert browser.ask("document.querySelector('details').open")
        assert "SUMMARY" in browser.ask("document.activeElement.tagName")
        assert abs(browser.ask("scrollY") - place) <= 2
        assert browser.ask("document.getElementById('stale').textContent") == ""
        assert all(address.startswith("file:") for address in browser.requests)
