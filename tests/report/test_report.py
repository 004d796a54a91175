"""The report as a whole: both files from run directories, whatever parts there are."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dualign.errors import CheckpointError
from dualign.report.key_figures import duration
from dualign.report.render import fenced, inline
from dualign.report.report import read_models, write_report

from .conftest import ATTACK, Record, cell, write_evaluation, write_rows, write_stage

VOID = {"meta", "br", "link", "img", "hr"}
ALL_SECTIONS = [
    "findings",
    "accuracy",
    "steps",
    "base",
    "format",
    "lengths",
    "difficulty",
    "samples",
    "curves",
    "rows",
    "cost",
    "checks",
    "settings",
    "versions",
]


class Page(HTMLParser):
    """Tags must close in order; keeps their names and attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(pipeline: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(out, pipeline, title="Demo <1> | test")
    return out


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def _sections(html: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', html)


def test_whole_pipeline_has_every_section(html: str, markdown: str) -> None:
    assert _sections(html) == ALL_SECTIONS
    assert markdown.count("\n## ") == len(ALL_SECTIONS)


def test_page_is_well_formed_and_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags
    links = [
        value or "" for name, value in page.attributes if name in ("href", "src", "xlink:href")
    ]
    assert [link for link in links if not link.startswith("#")] == ["report/answers.html"]
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert not re.search(r"url\((?!#)|@import", html)


def test_head_names_base_model_stages_and_cost(html: str) -> None:
    text = Page(html).text
    for fact in (
        "embedded:smollm2-135m-instruct",
        "data, sft, pairs, apo, merged, test",
        "12 min 38 s",
    ):
        assert fact in text
    assert "2026-03-01 10:00:00 UTC" in text


def test_numbers_of_the_table_are_those_of_the_metrics(pipeline: list[Path], markdown: str) -> None:
    metrics = json.loads((pipeline[-1] / "metrics.json").read_text(encoding="utf-8"))
    for model in metrics["all"]:
        line = next(row for row in markdown.splitlines() if row.startswith(f"| {model['model']} |"))
        cells = [text.strip() for text in line.split(" | ")]
        for i, task in enumerate(("sums", "cups", "letters")):
            for shift, mode in ((1, "think"), (2, "no_think")):
                accuracy = 100 * model["tasks"][task][mode]["accuracy"]
                assert cells[3 * i + shift].startswith(f"{accuracy:.1f} ")


def test_lengths_are_shown_with_intervals_and_changes(pipeline: list[Path], markdown: str) -> None:
    lengths = markdown.split("## How long the thinking is")[1].split("\n## ")[0]
    assert re.search(r"^\| model \| sums \| cups \| letters \| all \|$", lengths, re.M)
    assert r"| sft | 60.3 \[55.4, 65.1\] | 59.3 \[54.3, 64.2\] |" in lengths
    changes = markdown.split("## What each stage bought")[1].split("\n## ")[0]
    assert "| task | think | no_think | thinking tokens, % |" in changes
    whole = re.findall(r"^\| all \|.*\| (.*) \|$", changes, re.M)
    assert whole[0] == "-"  # the base thinks nothing
    assert whole[2] == r"(-0.3 \[-1.8, +1.2\])"


def test_every_picture_of_the_markdown_is_there_and_no_other(folder: Path, markdown: str) -> None:
    shown = re.findall(r"!\[[^\]]*\]\((report/[^)]+\.png)\)", markdown)
    assert len(shown) == len(set(shown)) >= 15
    assert sorted(shown) == sorted(
        f"report/{file.name}" for file in (folder / "report").glob("*.png")
    )


def test_rows_are_accounted_for_by_source_mode_and_reason(markdown: str) -> None:
    counts = "no_think | 200 | 190 | 35,720 | 17,860 | 188 | 498 | empty answer 3, duplicate 7"
    assert rf"| chat, everyday \| plain | {counts} |" in markdown
    assert "| all |  | 1,000 | 978 |" in markdown
    assert "neither kept nor dropped" not in markdown


def test_rows_that_do_not_add_up_are_pointed_out(tmp_path: Path) -> None:
    rows = {"in": 10, "kept": 7, "dropped": {"too long": 1}, "by": []}
    write_report(tmp_path, [write_stage(tmp_path, "sft", "sft", rows=rows)], title="t")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "sft: rows neither kept nor dropped, which should not be: all: 2." in text


def test_mean_length_is_over_what_is_trained_on(tmp_path: Path) -> None:
    entry = {"source": "s", "mode": "think", "in": 10, "kept": 10, "dropped": {}, "validation": 2}
    entry |= {
        "examples": 8,
        "repeats": 0,
        "tokens": 800,
        "supervised_tokens": 80,
        "max_tokens": 150,
    }
    rows = {"in": 10, "kept": 10, "dropped": {}, "by": [{**entry, "mean_tokens": 100.0}]}
    write_report(tmp_path, [write_stage(tmp_path, "sft", "sft", rows=rows)], title="t")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| source | mode | in | kept | validation | examples | tokens |" in text
    assert "| all |  | 10 | 10 | - | - | 800 | 80 | 100 | 150 | none |" in text


def test_losses_are_listed_by_mode_then_by_source(tmp_path: Path) -> None:
    names = [
        "loss/source/a",
        "loss/think",
        "rewards/margins/think",
        "loss",
        "rewards/margins/source/a",
    ]
    log = [{"step": 1, **dict.fromkeys(names, 1.0)}]
    write_report(tmp_path, [write_stage(tmp_path, "apo", "preference", log=log)], title="t")
    listed = re.findall(r"^\| ((?:loss|rewards)[^ ]*)", (tmp_path / "report.md").read_text(), re.M)
    assert listed == ["loss", "loss/think", "loss/source/a", "rewards/margins/think"]


def _attacked(folder: Path) -> Path:
    sample = {"task": "sums", "id": 1, "prompt": ATTACK, "answer": ATTACK, "thinking": ATTACK}
    samples = [
        {**sample, "mode": mode, "correct": False, "expected": ATTACK}
        for mode in ("think", "no_think")
    ]
    tasks = {ATTACK: {"think": cell(1, 2)}, "sums": {"think": cell(1, 2), "no_think": cell(0, 2)}}
    write_report(
        folder,
        [write_evaluation(folder, "test", [{"model": ATTACK, "tasks": tasks}], samples)],
        title=ATTACK,
    )
    return folder


def test_foreign_text_cannot_become_markup(tmp_path: Path) -> None:
    html = (_attacked(tmp_path) / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html
    assert ATTACK in page.text


def test_foreign_text_cannot_break_a_markdown_table(tmp_path: Path) -> None:
    text = (_attacked(tmp_path) / "report.md").read_text(encoding="utf-8")
    fences = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in fences
    columns = 0
    for line in fences.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("| "):
            columns = 0
            continue
        columns = columns or bars
        assert bars == columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no_think", "no_think"),
        ("_a_ __init__", r"\_a\_ \_\_init\_\_"),
        ("a|b\nc", r"a\|b<br>c"),
        ("<b> & `x`", r"&lt;b&gt; &amp; \`x\`"),
    ],
)
def test_markdown_shows_foreign_text_as_it_is(text: str, expected: str) -> None:
    assert inline(text) == expected


def test_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a\n````\nb") == "`````text\na\n````\nb\n`````"


def test_parts_that_were_not_run_are_left_out(tmp_path: Path, pipeline: list[Path]) -> None:
    write_report(tmp_path, pipeline[:2], title="t")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert _sections(html) == [
        "findings",
        "curves",
        "rows",
        "cost",
        "checks",
        "settings",
        "versions",
    ]
    assert "Final model" not in html and "rewards" not in html


def test_stage_that_says_the_least_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "merged"
    path.mkdir()
    (path / "run.json").write_text(
        json.dumps({"name": "merged", "kind": "merge"}), encoding="utf-8"
    )
    write_report(tmp_path, [path], title="t")
    assert _sections((tmp_path / "report.html").read_text(encoding="utf-8")) == [
        "cost",
        "settings",
        "versions",
    ]


def test_evaluation_of_one_model_in_one_mode_is_reported(tmp_path: Path) -> None:
    model = {"model": "m", "tasks": {"sums": {"think": cell(1, 2)}}}
    write_report(tmp_path, [write_evaluation(tmp_path, "test", [model])], title="t")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert _sections(html) == ["accuracy", "format", "cost", "settings", "versions"]


def test_model_without_a_mode_switch_is_named(tmp_path: Path) -> None:
    cells = {"sums": {"think": cell(1, 2), "no_think": cell(1, 2)}}
    models: list[Record] = [
        {"model": "base", "mode_switch": False, "tasks": cells},
        {"model": "sft", "tasks": cells},
    ]
    write_report(tmp_path, [write_evaluation(tmp_path, "test", models)], title="t")
    assert "so that both modes got one prompt: base." in (tmp_path / "report.md").read_text()


def test_training_stage_that_was_not_evaluated_is_said_to_be_unknown(tmp_path: Path) -> None:
    stages = [
        write_stage(tmp_path, "mid", "sft", log=[{"step": 1, "loss": 2.0}]),
        write_evaluation(
            tmp_path, "test", [{"model": "sft", "tasks": {"sums": {"think": cell(1, 2)}}}]
        ),
    ]
    write_report(tmp_path, stages, title="t")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "mid: not evaluated, so what it bought in accuracy isn't known." in text


def test_pictures_of_an_earlier_report_are_removed(tmp_path: Path, pipeline: list[Path]) -> None:
    write_report(tmp_path, pipeline[:2], title="t")
    before = {file.name for file in (tmp_path / "report").iterdir()}
    write_report(tmp_path, pipeline[:1], title="t")
    after = {file.name for file in (tmp_path / "report").iterdir()}
    assert "loss-sft.png" in before
    assert after == {"cost-time.png", "cost-memory.png"}


def test_same_run_directories_give_the_same_files(tmp_path: Path, pipeline: list[Path]) -> None:
    for name in ("first", "second"):
        write_report(tmp_path / name, pipeline[:2], title="t")
    first, second = (
        {f.name: f.read_bytes() for f in (tmp_path / n).rglob("*.*")} for n in ("first", "second")
    )
    assert first == second


def test_broken_characters_of_a_model_do_not_stop_the_report(tmp_path: Path) -> None:
    sample = {"task": "sums", "id": 1, "prompt": "p", "answer": "\ud83d", "correct": True}
    path = write_evaluation(
        tmp_path, "test", [{"model": "m", "tasks": {"sums": {"think": cell(1, 2)}}}]
    )
    write_rows(path / "samples.jsonl", [{**sample, "mode": mode} for mode in ("think", "no_think")])
    write_report(tmp_path, [path], title="t")
    assert "sums, problem 1" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no stage was named"):
        write_report(tmp_path, [], title="t")


def test_models_are_read_for_the_terminal(pipeline: list[Path]) -> None:
    assert [model.model for model in read_models(pipeline)] == ["base", "sft", "apo", "merged"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lengths_of_pairs_are_shown_with_their_warning(tmp_path: Path) -> None:
    of_mode = {"pairs": 1200, "chosen": 19.0, "rejected": 11.0, "chosen_longer": 0.9}
    modes = {"think": {**of_mode, "correlation": 0.8, "warning": "chosen is longer"}}
    metrics = {"pairs": 1200, "lengths": {"unit": "tokens of tiny", "modes": modes}}
    folder = write_stage(tmp_path, "pairs", "pairs", metrics=metrics)
    write_report(tmp_path, [folder], title="t")
    text = (tmp_path / "report.md").read_text()
    assert "| think | 1,200 | 19.0 | 11.0 | 90% | +0.80 |" in text
    assert "pairs, think: chosen is longer." in text
