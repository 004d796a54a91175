"""The benchmark of a training step, on a model of two layers: both sides train the same."""

import pytest

from benchmarks.training import ROWS, run_side, table_line


@pytest.mark.parametrize("name", ["sft-packed", "apo-2"])
def test_both_sides_of_the_benchmark_have_the_same_loss(name: str) -> None:
    runs = {side: [run_side(side, name, 1, tiny=True)] for side in ROWS[name].sides}
    first, second = (run[0]["train_loss"] for run in runs.values())
    assert second == pytest.approx(first, rel=1e-5)
    assert table_line(name, runs).count("|") == 9


def test_the_first_step_is_timed_without_a_warm_up() -> None:
    run = run_side("dualign", "apo-2", 2, warm_up=0, tiny=True)
    assert len(run["seconds"]) == 2 and run["units"] == 4


def test_a_side_that_failed_leaves_the_other_in_the_table() -> None:
    whole = {"seconds": [2.0], "cpu_seconds": 3.0, "units": 4, "memory_mb": 5.0}
    line = table_line("apo-2", {"trl": [{"failed": "exit -9"}], "dualign": [whole]})
    assert "trl exit -9" in line and "dualign 2 pairs/s, 5 MB" in line and line.count("|") == 9
