"""Documents are cut at what their author set apart, by the tokenizer's own count."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.request import DataRequest
from dualign.data.rows.cutting import Cutter, cutter_for
from dualign.data.text.template import load_template


def by_characters(max_tokens: int) -> Cutter:
    """A cutter for which each character is a token."""
    return Cutter(token_ends=lambda text: range(1, len(text) + 1), max_tokens=max_tokens)


def pieces(text: str, max_tokens: int, *, headings: bool = False) -> list[str]:
    return list(by_characters(max_tokens).pieces([text], headings=headings))


@pytest.mark.parametrize(
    ("text", "max_tokens", "headings", "expected"),
    [
        ("", 5, False, []),
        ("abc", 3, False, ["abc"]),
        ("One two.\n\nThree. Four five", 20, False, ["One two.\n\n", "Three. Four five"]),
        ("a\n\n\n  b", 6, False, ["a\n\n\n", "  b"]),  # an indent stays with its line
        ("# A\nx\n\ny\n# B\nz", 12, True, ["# A\nx\n\ny\n", "# B\nz"]),
        ("# A\nx\n\ny\n# B\nz", 12, False, ["# A\nx\n\n", "y\n# B\nz"]),
        ("#tag\n#if x\ny", 6, True, ["#tag\n", "#if x\n", "y"]),  # no headings: lines
        ('He said "no." And left', 16, False, ['He said "no."', " And left"]),
        ("一二三。四五六。七", 6, False, ["一二三。", "四五六。七"]),
        ("a b.\nc d e f g h", 8, False, ["a b.\n", "c d e f", " g h"]),
        ("one two three", 9, False, ["one two", " three"]),
        ("ab abcdefghij", 6, False, ["ab", " abcde", "fghij"]),  # no piece could hold the word
        ("nae\u0301e\u0301", 3, False, ["na", "e\u0301", "e\u0301"]),  # accents stay with letters
    ],
)
def test_a_break_of_the_author_comes_before_a_finer_one(
    text: str, max_tokens: int, headings: bool, expected: list[str]
) -> None:
    assert pieces(text, max_tokens, headings=headings) == expected


def test_a_break_that_leaves_less_than_a_quarter_gives_way_to_a_finer_one() -> None:
    text = "ab\n\n" + "cd ef. " * 6
    assert pieces(text, 40)[0] == text[:38]  # after a sentence, not after the first line
    assert pieces(text[:40], 16)[0] == "ab\n\n"


def test_without_a_limit_a_document_is_one_piece() -> None:
    assert list(
        Cutter(token_ends=list, max_tokens=None).pieces(["a" * 9, "b"], headings=False)
    ) == ["aaaaaaaaab"]


words = st.sampled_from(
    [
        "a",
        "the",
        "\n",
        "\n\n",
        " ",
        ". ",
        "# B ",
        "\n# ",
        "é",
        "e\u0301",
        "你好。",
        "🙂",
        "\t",
        "4,5",
    ]
)


@settings(max_examples=25)
@given(parts=st.lists(words, max_size=80), max_tokens=st.integers(4, 40), headings=st.booleans())
def test_joined_rows_give_the_document_and_none_is_too_long(
    tokenizer: PreTrainedTokenizerFast,
    llama_tokenizer: PreTrainedTokenizerFast,
    parts: list[str],
    max_tokens: int,
    headings: bool,
) -> None:
    text = "".join(parts)
    for cuts in (tokenizer, llama_tokenizer):
        data = DataConfig(sources=(SourceConfig(path="x"),), max_tokens=max_tokens + 1)
        request = DataRequest(data, cuts, load_template("dualign", tokenizer=cuts), seed=0)
        made = list(cutter_for(request).pieces(parts, headings=headings))
        assert "".join(made) == text
        sizes = [len(cuts(piece, add_special_tokens=False)["input_ids"]) for piece in made]
        assert all(size <= max_tokens for size in sizes) and all(made)
        joined = [token for p in made for token in cuts(p, add_special_tokens=False)["input_ids"]]
        assert cuts.decode(joined) == text
        for before, after in pairwise(made):
            assert not (before[-1:].isalpha() and after[:1].isalpha()) or max(sizes) > 1


def test_a_document_that_comes_in_parts_is_cut_as_the_whole(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"Line {n} of this page.\n" + "\n" * (n % 7 == 0) for n in range(400))
    monkeypatch.setattr("dualign.data.rows.cutting._WINDOW", 500)
    cutter = by_characters(30)
    whole = list(cutter.pieces([text], headings=False))
    parts = [text[start : start + 77] for start in range(0, len(text), 77)]
    assert list(cutter.pieces(parts, headings=False)) == whole and "".join(whole) == text
