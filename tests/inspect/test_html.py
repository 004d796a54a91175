"""The page shows what is trained on: each token once, supervised ones marked, foreign text escaped."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.prepare import DataRequest, SFTData, prepare_pairs, prepare_sft
from dualign.data.text.template import load_template
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.inspect.html import MOST_TOKENS, inspect_page, write_page
from dualign.inspect.terminal import samples_of
from dualign.report.blocks import Table, TokenView
from dualign.report.render import render_markdown

Write = Callable[[list[dict[str, Any]], str], Path]
ROWS = [
    {"prompt": "Is <b> bold?", "completion": "Yes & <script>alert(1)</script>\nno"},
    {"prompt": "Hi", "completion": "<think>\nA greeting.\n</think>\nYo, Zoë."},
]


def prepared(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **data: Any
) -> SFTData:
    source = SourceConfig(path=str(write_rows(rows, "sft.jsonl")))
    config = DataConfig(sources=(source,), **data)
    return prepare_sft(DataRequest(config, tokenizer, load_template("dualign"), seed=1))


def test_the_page_holds_each_sample_with_its_supervised_text_marked(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    made = prepared(write_rows, tokenizer, ROWS)
    write_page(tmp_path / "new" / "rows.html", made, tokenizer, title="Rows of <sft>")
    page = (tmp_path / "new" / "rows.html").read_text(encoding="utf-8")
    shown = re.findall(r'<pre class="tokens">(.*?)</pre>', page, flags=re.DOTALL)
    for document, text in zip(samples_of(made, 2), shown, strict=True):
        marked = re.findall(r'<span class="supervised[^"]*">(.*?)</span>', text, flags=re.DOTALL)
        supervised = [label for label in document.labels if label != IGNORE_INDEX]
        assert plain("".join(marked)) == tokenizer.decode(supervised)
        assert plain(text) == tokenizer.decode(document.ids)
    assert "<script>" not in page and "Rows of &lt;sft&gt;" in page
    assert "prefers-color-scheme: dark" in page and "http" not in page.replace("http://www.w3", "")


def plain(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page)).replace("\u21b5\n", "\n")


def test_a_pair_shows_both_sides(write_rows: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [{"prompt": "Hi", "chosen": f"Yo {n}", "rejected": f"No {n}"} for n in range(3)]
    source = SourceConfig(path=str(write_rows(pairs, "pairs.jsonl")))
    made = prepare_pairs(
        DataRequest(DataConfig(sources=(source,)), tokenizer, load_template("dualign"), seed=1)
    )
    page = inspect_page(made, tokenizer, title="Pairs", samples=1)
    titles = [
        block.title
        for part in page.sections
        for block in part.blocks
        if isinstance(block, TokenView)
    ]
    assert titles == ["pairs (no_think) chosen", "pairs (no_think) rejected"]


def test_of_a_long_row_head_and_end_are_shown(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"prompt": "Count", "completion": " ".join(map(str, range(6000)))}]
    made = prepared(write_rows, tokenizer, rows, max_tokens=60_000)
    page = inspect_page(made, tokenizer, title="Long")
    (block,) = [
        item for part in page.sections for item in part.blocks if isinstance(item, TokenView)
    ]
    text = "".join(run.text for run in block.spans)
    over = made.rows["tokens"] - MOST_TOKENS
    assert f"[{over:,} tokens are left out here]" in text
    assert text.startswith("<|im_start|>system") and "5999<|im_end|>" in text


def test_the_page_can_be_markdown_as_every_report(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    page = inspect_page(prepared(write_rows, tokenizer, ROWS), tokenizer, title="Rows")
    assert "Yes & <script>alert(1)</script>" in render_markdown(page, picture_folder="p")


def test_rows_that_were_screened_out_are_shown_with_what_they_repeat(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = prepared(write_rows, tokenizer, [*ROWS, ROWS[0]], dedup=DedupConfig())
    grids = [
        block
        for part in inspect_page(made, tokenizer, title="Rows").sections
        for block in part.blocks
        if isinstance(block, Table) and block.caption
    ]
    ((source, row, code, same_as, _text),) = grids[0].rows
    assert (source, row, code, same_as) == ("sft", "2", "duplicate", "source sft, row 0")
