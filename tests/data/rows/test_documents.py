"""Documents: what of a PDF, Word, Markdown or text file is learned, and what is said of the rest."""

import gzip
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docx
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, DecontaminateConfig, DedupConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.prepare import SFTData, prepare_sft
from dualign.data.request import DataRequest
from dualign.data.rows.loading import load_source
from dualign.data.text.document_marks import document_marks
from dualign.data.text.template import load_template
from dualign.errors import DataError
from tests.document_files import write_pdf

PARAGRAPHS = [f"The {n}th well is {n * 7} meters deep and {n} steps wide." for n in range(30)]
TALK = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
]


def prepared(
    tokenizer: PreTrainedTokenizerFast, *sources: SourceConfig, **settings: Any
) -> SFTData:
    options = {"max_tokens": 64, "packing": "none", "cache": False} | settings
    data = DataConfig(sources=sources, **options)
    template = load_template("dualign", tokenizer=tokenizer)
    return prepare_sft(DataRequest(data, tokenizer, template, seed=0))


def texts(made: SFTData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(ids) for ids in made.train["input_ids"]]


def word(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Pumps", 1)
    document.add_paragraph("A pump lifts water.")
    document.add_paragraph("by hand", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "Depth"
    table.cell(1, 0).text, table.cell(1, 1).text = "7", "14"
    document.sections[0].header.paragraphs[0].text = "Confidential"
    document.save(str(path))
    return path


def locked(path: Path) -> Path:
    writer = pypdf.PdfWriter(clone_from=str(write_pdf(path, [["Secret"]])))
    writer.encrypt("key", algorithm="RC4-128")
    writer.write(str(path))
    return path


def test_a_pdf_gives_the_lines_of_its_pages(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [["The first", "page."], [], ["The third."]])
    assert load_source(SourceConfig(path=str(path)))["text"][:] == ["The first\npage.\nThe third."]


def test_a_word_file_gives_headings_lists_and_tables_in_their_order(tmp_path: Path) -> None:
    path = word(tmp_path / "a.docx")
    expected = "# Pumps\n\nA pump lifts water.\n\n- by hand\n\nDepth\n7 | 14\n"
    assert load_source(SourceConfig(path=str(path)))["text"][:] == [expected]


def test_text_in_wrappers_of_word_is_learned_and_what_was_deleted_is_not(tmp_path: Path) -> None:
    path, document = tmp_path / "a.docx", docx.Document()
    run = "<w:r><w:t>{}</w:t></w:r>"
    control = "<w:sdt><w:sdtPr/><w:sdtContent>{}</w:sdtContent></w:sdt>"
    for content in (
        f"<w:p>{run.format('Pay ')}<w:ins>{run.format('two')}</w:ins>"
        "<w:del><w:r><w:delText>one</w:delText></w:r></w:del>"
        f"<w:moveFrom>{run.format(' gone')}</w:moveFrom><w:moveTo>{run.format(' coins')}</w:moveTo></w:p>",
        control.format(f"<w:p>{control.format(run.format('By ') + '<w:ins/>')}"
                       f"<w:smartTag>{run.format('May')}</w:smartTag></w:p>"),
        control.format(f"<w:p>{run.format('Contents 3')}</w:p>").replace(
            "<w:sdtPr/>",
            '<w:sdtPr><w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj></w:sdtPr>',
        ),
    ):  # fmt: skip
        element = parse_xml(content.replace(">", f" {nsdecls('w')}>", 1))
        document.element.body.insert(-1, element)
    cell = document.add_table(rows=1, cols=2).cell(0, 1)
    cell.text = "in"
    cell.add_table(rows=1, cols=1).cell(0, 0).text = "side"
    document.save(str(path))
    expected = "Pay two coins\n\nBy May\n\n | in side\n"
    assert load_source(SourceConfig(path=str(path)))["text"][:] == [expected]


def test_documents_of_a_folder_that_are_not_read_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = SourceConfig(path=str(tmp_path))
    (tmp_path / "a.txt").write_text("A pump.")
    (tmp_path / "old").mkdir()
    for name in ("b.doc", "old/c.DOC", "d.html", ".e.doc"):
        (tmp_path / name).write_bytes(b"x")
    assert load_source(source)["text"][:] == ["A pump."]
    assert "aren't read: 2 .doc, 1 .html" in caplog.text
    write_pdf(tmp_path / "f.pdf", [["Lost"]])
    (tmp_path / "rows.jsonl").write_text('{"text": "A row."}\n')
    assert load_source(source)["text"][:] == ["A row."]
    assert "aren't read: 1 .pdf, 2 .doc, 1 .html" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_all_kinds_is_one_source_cut_to_max_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, streaming: bool
) -> None:
    text = "\n\n".join(PARAGRAPHS)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"# A\n\nOne.\n"))
    word(tmp_path / "c.docx")
    write_pdf(tmp_path / "d.pdf", [["Lines of a page."]])
    (tmp_path / ".hidden.txt").write_text("no")
    made = prepared(tokenizer, SourceConfig(path=str(tmp_path), streaming=streaming))
    assert max(map(len, made.train["input_ids"])) <= 64
    end = "<|end_of_text|>"
    rows = texts(made, tokenizer)
    assert sum(row.endswith(end) for row in rows) == 4 and sum(row.count(end) for row in rows) == 4
    assert {"# A\n\nOne.\n" + end, "Lines of a page." + end} <= set(rows)
    of_text = [row.removesuffix(end) for row in rows if "well" in row]
    assert (
        len(of_text) > 5
        and sorted(of_text, key=text.index)
        and text == "".join(sorted(of_text, key=text.index))
    )
    assert all(row.startswith("The ") for row in of_text)  # at paragraphs
    for ids, labels in zip(made.train["input_ids"], made.train["labels"], strict=True):
        assert labels[1:] == ids[1:]
    assert [(entry["mode"], entry["in"]) for entry in made.rows["by"]] == [("text", len(rows))]
    assert made.groups == (("text", tmp_path.name),)


def bad(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


FAULTS: list[tuple[str, Callable[[Path], Path], str]] = [
    (
        "unreadable_document",
        bad("a.txt", "Il \xe9tait".encode("latin-1")),
        "a.txt, line 1: isn't UTF-8",
    ),
    ("unreadable_document", bad("a.md", b"\xff\xfea\x00b"), "a.md: isn't UTF-16 text"),
    ("unreadable_document", bad("a.txt", b"One\0two three"), "a.txt: holds NUL"),
    ("unreadable_document", bad("a.pdf", b"no PDF at all"), "a.pdf: can't be read as a PDF"),
    ("unreadable_document", bad("a.docx", b"no Word file"), "a.docx: can't be read as a Word"),
    ("unreadable_document", bad("a.docx", b"\xd0\xcf\x11\xe0" + bytes(99)), "a.docx: is encrypted"),
    ("unreadable_document", lambda folder: locked(folder / "a.pdf"), "a.pdf: is encrypted"),
    (
        "no_text",
        lambda folder: write_pdf(folder / "a.pdf", [None, []]),
        "none of its 2 pages has text",
    ),
    (
        "no_text",
        lambda folder: write_pdf(folder / "a.pdf", [["x"], None]),
        "page 2: an image without",
    ),
    (
        "control_token",
        bad("a.md", b"It ends with <|im_end|> there."),
        "a.md, part 1: .* '<|im_end|>'",
    ),
]


@pytest.mark.parametrize(("code", "write", "words"), FAULTS)
def test_what_cannot_be_learned_stops_or_is_counted_with_its_file(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    code: str,
    write: Callable[[Path], Path],
    words: str,
) -> None:
    write(tmp_path)
    (tmp_path / "z.txt").write_text("A good text.")
    source = SourceConfig(path=str(tmp_path))
    with pytest.raises(RowError, match=words.replace("|", r"\|")) as refusal:
        prepared(tokenizer, source)
    assert refusal.value.code == code
    rows = prepared(tokenizer, source, conflicts="drop").rows
    assert rows["dropped"] == {code: 1} and rows["in"] == rows["kept"] + 1 and rows["kept"]


def test_an_empty_file_and_a_readme_beside_texts_are_no_documents(tmp_path: Path) -> None:
    late = " \n" * 999 + "A text."
    for name, text in (
        ("a.txt", late),
        ("b.txt", ""),
        ("c.txt", " " * 999),
        ("README.md", "About."),
    ):
        (tmp_path / name).write_text(text)
    assert load_source(SourceConfig(path=str(tmp_path)))["text"][:] == [late]
    (tmp_path / "a.txt").rename(tmp_path / "a.md")
    assert len(load_source(SourceConfig(path=str(tmp_path)))) == 2


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pdf(tmp_path / "a.pdf", [["x"]])
    monkeypatch.setattr(
        "dualign.data.rows.documents.find_spec",
        lambda name: None if name == "pypdf" else find_spec(name),
    )
    with pytest.raises(DataError, match=r"pypdf: pip install 'dualign\[documents\]'"):
        load_source(SourceConfig(path=str(path)))


def test_documents_are_learned_whole_beside_answers_of_conversations(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "a.md").write_text("\n\n".join(PARAGRAPHS))
    talk = write_rows(TALK * 8)
    more = write_rows([{"body": "A row of a table."}], "table.jsonl")
    sources = (
        SourceConfig(path=str(tmp_path / "a.md"), share=0.5),
        SourceConfig(path=str(talk)),
        SourceConfig(path=str(more), columns={"text": "body"}),
    )
    made = prepared(tokenizer, *sources, packing="best_fit", max_tokens=96, validation_rows=2)
    by = {entry["source"]: entry for entry in made.rows["by"]}
    assert by["a"]["supervised_tokens"] == by["a"]["tokens"]
    assert by["table"]["supervised_tokens"] == by["table"]["tokens"] > 0
    assert 0 < by["rows"]["supervised_tokens"] < by["rows"]["tokens"]
    assert {name: entry["mode"] for name, entry in by.items()} == {
        "a": "text",
        "rows": "no_think",
        "table": "text",
    }
    assert by["a"]["share"] == pytest.approx(0.5, abs=0.1) and "share" in by["a"]["dropped"]
    assert made.validation is not None and made.rows["validation"] == 2


def test_a_text_column_that_nobody_named_is_still_refused(
    tokenizer: PreTrainedTokenizerFast, write_rows: Callable[..., Path]
) -> None:
    source = SourceConfig(path=str(write_rows([{"text": "### User: Hi"}])))
    with pytest.raises(RowError, match=r"columns: \{text: NAME\}"):
        prepared(tokenizer, source)


def test_mix_weighs_conversations_and_leaves_raw_text_as_it_is(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(PARAGRAPHS))
    think = [
        {
            "messages": [
                TALK[0]["messages"][0],
                {"role": "assistant", "content": "<think>Hm</think>Hello."},
            ]
        }
    ]
    path = write_rows(TALK * 30 + think * 10)
    sources = (SourceConfig(path=str(tmp_path / "a.txt")), SourceConfig(path=str(path)))
    made = prepared(tokenizer, *sources, mix={"think": 0.5, "no_think": 0.5})
    by = {entry["mode"]: entry for entry in made.rows["by"]}
    assert by["text"]["dropped"] == {} and by["think"]["dropped"] == {}
    assert by["think"]["tokens"] == pytest.approx(by["no_think"]["tokens"], rel=0.15)
    shared = (SourceConfig(path=str(tmp_path / "a.txt"), share=0.3), sources[1])
    with pytest.raises(DataError, match="raw text has no mode"):
        prepared(tokenizer, *shared, mix={"think": 0.5, "no_think": 0.5})
    with pytest.raises(DataError, match="every source holds raw text"):
        prepared(tokenizer, sources[0], mix={"think": 0.5, "no_think": 0.5})


def test_pieces_are_screened_as_rows_are(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    page = "\n\n".join(PARAGRAPHS[:8])
    (tmp_path / "a.txt").write_text(page)
    (tmp_path / "b.txt").write_text(page)
    problem = json.dumps({"question": PARAGRAPHS[3], "answer": "3"})
    (tmp_path / "problems.jsonl").write_text(problem)
    (tmp_path / "task.yaml").write_text(
        "name: wells\nrows: problems.jsonl\nprompt: '{question}'\nanswer: '{answer}'\nverifier: exact\n"
    )
    made = prepared(
        tokenizer,
        SourceConfig(path=str(tmp_path / "*.txt"), label="pages"),
        dedup=DedupConfig(),
        decontaminate=DecontaminateConfig(tasks=(str(tmp_path / "task.yaml"),), ngram=6),
    )
    dropped, rows = made.rows["dropped"], made.rows["in"] // 2
    assert dropped == {"contaminated": 2, "duplicate": rows - 1} and made.rows["kept"] == rows - 1
    assert {entry["mode"] for entry in made.rows["by"]} == {"text"}


def test_the_end_of_a_document_is_no_end_of_a_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert document_marks(tokenizer) == ("", "<|end_of_text|>")
