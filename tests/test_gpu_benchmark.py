"""benchmarks/gpu.py in its tiny form, so that it works on the day that a card is there."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}  # of errors, as a share of the largest figure


def require_sound(figures: list[dict[str, Any]]) -> None:
    """No part failed, attention is what it is by definition, and both sides start at one loss."""
    assert not [figure for figure in figures if "failed" in figure]
    for figure in figures:
        what, value = figure["what"], figure["dualign"]
        assert value is None or math.isfinite(value)
        if what.startswith(("error", "isolation")):
            assert value <= BOUNDS[what.rpartition(", ")[2]], what
        if what.startswith("gradient"):
            assert value <= (1e-5 if what.endswith("float32") else 1e-3), what
        if what.startswith("loss"):
            assert value == pytest.approx(figure["trl"], rel=1e-2)


@pytest.mark.parametrize(
    "parts",
    [
        ["attention", "sft-135m-lora", "apo-1.7b-full", "generation", "long-4k-tiled"],
        pytest.param(list(gpu.PARTS), marks=pytest.mark.slow),
    ],
    ids=["five parts", "all"],
)
def test_tiny_parts_run_and_are_sound(
    parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--json", str(file), "--parts", *parts]) == 0
    result = json.loads(file.read_text())
    assert {"card", "versions", "command"} <= set(result) and result["versions"]["torch"]
    require_sound(result["figures"])
    trained = [name for name in parts if name.startswith(("sft", "apo", "long"))]
    speeds = [figure for figure in result["figures"] if figure["what"] == "speed"]
    assert [figure["part"] for figure in speeds] == trained
    for figure in speeds:
        assert figure["dualign"] > 0
        assert (figure["trl"] or 0) > 0 or figure["part"].startswith("long")
    assert "| part | figure | dualign | TRL | ratio | unit |" in capsys.readouterr().out


@pytest.mark.slow
def test_long_rows_train_alike_in_every_way(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--long", "--json", str(file)]) == 0
    require_same_losses(json.loads(file.read_text())["figures"])


def require_same_losses(figures: list[dict[str, Any]]) -> None:
    """Rows of a length have one loss, plain, in tiles and offloaded."""
    losses: dict[str, list[float]] = {}
    for figure in figures:
        if figure["what"] == "last loss":
            losses.setdefault(figure["part"].split("-")[1], []).append(figure["dualign"])
    assert {name: len(values) for name, values in losses.items()} == {"4k": 3, "16k": 3, "64k": 3}
    for values in losses.values():
        assert values == pytest.approx([values[0]] * 3, rel=1e-3)


def test_a_part_that_fails_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: gpu.Setting) -> Iterator[gpu.Figure]:
        yield gpu._figure("before", "s", 1.0)
        raise ValueError("no such kernel")

    parts = {"generation": gpu.Part(run=broken, seconds=1)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    figures = gpu.run_part("generation", gpu.Setting(folder=tmp_path, tiny=True))
    assert [figure["what"] for figure in figures] == ["before", "failed", "took"]
    assert figures[1]["failed"] == "ValueError: no such kernel"
    assert "no such kernel" in gpu.table(figures)


def test_a_part_that_takes_too_long_ends_with_its_worker_and_all_time_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = gpu.Setting(folder=tmp_path, tiny=True)
    hanging = {
        name: gpu.Part(run=gpu.generation, seconds=-90) for name in ("generation", "attention")
    }
    monkeypatch.setattr(gpu, "PARTS", hanging)
    number, figures = gpu._one_worker(["generation", "attention"], setting, time.monotonic() + 60)
    assert number == 1 and [figure["part"] for figure in figures] == ["generation"]
    assert figures[0]["failed"] == "took more than 0 s"
    monkeypatch.setattr(gpu, "LIMIT_SECONDS", -1)
    assert [figure["failed"] for figure in gpu.in_workers(["attention"], setting)] == [
        "no time left"
    ]


@pytest.mark.slow
def test_a_worker_goes_through_its_parts(tmp_path: Path) -> None:
    setting = gpu.Setting(folder=tmp_path, tiny=True)
    number, figures = gpu._one_worker(["generation"], setting, time.monotonic() + 600)
    assert number == 1
    require_sound(figures)
    assert figures[-1]["what"] == "took"
