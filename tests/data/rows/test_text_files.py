"""A text file is one document of plain text."""

import gzip
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import SourceConfig, data_config
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_rated, prepare_sft
from dualign.data.rows.loading import load_source, sample_rows
from dualign.data.text.template import load_template
from dualign.errors import DataError

TEXT = "Once upon a time.\n\nThere was a number, 3.\n"


def folder(path: Path) -> Path:
    (path / "a.txt").write_text(TEXT)
    (path / "b.txt").write_bytes(TEXT.replace("\n", "\r\n").encode("utf-16"))
    (path / "c.txt.gz").write_bytes(gzip.compress(("\ufeff" + TEXT).encode()))
    (path / "d.txt").write_text("")
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_each_file_is_a_row_whatever_its_encoding(tmp_path: Path, streaming: bool) -> None:
    source = SourceConfig(path=str(folder(tmp_path)), streaming=streaming)
    assert load_source(source)["text"][:] == [TEXT] * 3


def test_rows_and_slices_choose_among_the_files(tmp_path: Path) -> None:
    path = str(folder(tmp_path))
    assert len(load_source(SourceConfig(path=path, split="train[:2]"))) == 2
    for streaming in (False, True):
        source = SourceConfig(path=path, rows=2, streaming=streaming)
        assert len(sample_rows(source, seed=0, number=0, base=None).table) == 2


def test_a_readme_beside_rows_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("About the rows.")
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    assert load_source(SourceConfig(path=str(tmp_path)))["text"][:] == ["a row"]


def test_text_of_another_encoding_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Il était une fois".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt, line 1: isn't UTF-8"):
        load_source(SourceConfig(path=str(tmp_path / "a.txt")))


def test_texts_are_learned_whole_by_conversations_stages_alone(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = SourceConfig(path=str(folder(tmp_path)))
    for supervise in ("all", "assistant", "answers"):
        data = data_config(
            {
                "sources": [{"path": source.path}],
                "max_tokens": 128,
                "packing": "none",
                "supervise": supervise,
            }
        )
        made = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=0))
        assert [tokenizer.decode(ids) for ids in made.train["input_ids"]] == [TEXT] * 3
        assert made.rows["supervised_tokens"] == made.rows["tokens"]
    for prepare in (prepare_pairs, prepare_rated):
        with pytest.raises(RowError, match=r"plain text|no known shape"):
            prepare(DataRequest(data, tokenizer, load_template("dualign"), seed=0))
