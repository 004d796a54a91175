"""Ranks that prepared other rows aren't trained together."""

import datasets
import pytest

from dualign.errors import DataError
from dualign.training import rows
from dualign.training.rows import require_same_rows


def test_ranks_with_other_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rank's rows differ in one token, or are one fewer."""
    same = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]] * 20})
    said: list[tuple[str, int, str]] = []

    def gather(value: tuple[str, int, str]) -> list[tuple[str, int, str]]:
        said.append(value)
        return said

    monkeypatch.setattr(rows, "gather", gather)
    require_same_rows(same)
    assert not said, "a process alone has nobody to ask"
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_same_rows(same)
    require_same_rows(datasets.Dataset.from_dict(same.to_dict()))
    other = same.to_dict()
    other["input_ids"][0] = [1, 2, 4]
    for changed in (other, {"input_ids": other["input_ids"][1:]}):
        del said[1:]
        with pytest.raises(
            DataError, match=r"rank 1 on .* prepared (40|39) rows that aren't the 40"
        ):
            require_same_rows(datasets.Dataset.from_dict(changed))
