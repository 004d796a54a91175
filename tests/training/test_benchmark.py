"""The benchmark of a training step, on a model of two layers: both sides train the same."""

import pytest

from benchmarks.training import ROWS, run_side, table_line


@pytest.mark.parametrize("name", ["sft-packed", "apo-2"])
def test_both_sides_of_the_benchmark_have_the_same_loss(name: str) -> None:
    runs = {side: [run_side(side, name, 1, tiny=True, profile=False)] for side in ROWS[name].sides}
    first, second = (run[0]["train_loss"] for run in runs.values())
    assert second == pytest.approx(first, rel=1e-5)
    assert table_line(name, runs).count("|") == 9
