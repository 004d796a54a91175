"""Tables that another program wrote: what of them is read, and that none ends an import."""

from pathlib import Path

import pytest

from dualign.importing.local_rows import first_rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\ufeffprompt,completion\na,b\n", [{"prompt": "a", "completion": "b"}]),
        ("prompt,completion\na,b,more\n", [{"prompt": "a", "completion": "b"}]),
        ("prompt,completion\na\n", [{"prompt": "a", "completion": None}]),
        (f"prompt,completion\na,b\nc,{'x' * 200_000}\n", [{"prompt": "a", "completion": "b"}]),
        ("", []),
    ],
)
def test_rows_of_a_table_are_read_up_to_one_that_cannot_be(
    text: str, rows: list[dict], tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    assert list(first_rows(tmp_path / "rows.csv")) == rows
