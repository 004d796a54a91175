"""The script that starts workers through datatrove: their rows are those of `dualign prepare` alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dualign.cli.main import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "prepare" / "with_datatrove.py"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--worker", "2/2"], "--worker: expected K/N, .* 0 to N - 1, found '2/2'"),
        (["--worker", "1"], "--worker: expected K/N, .* found '1'"),
        (["--join", "0"], "--join: expected the number of workers, found 0"),
        (["--worker", "0/2", "--join", "2"], "--worker and --join: expected one of them"),
    ],
)
def test_a_part_that_there_is_not_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "quickstart", *options]) == 2
    assert pytest.RaisesExc(Exception, match=message).matches(Exception(capsys.readouterr().err))


@pytest.mark.slow
def test_two_local_workers_of_datatrove_prepare_the_rows_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("datatrove", reason="pip install 'dualign[datatrove]'")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": [{**turns[0], "content": f"Hi {n % 50}"}, turns[1]]} for n in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "sft",
        "kind": "sft",
        "model": "embedded:smollm2-135m-instruct",
        "output_dir": "runs",
        "data": {"sources": [{"path": "rows.jsonl"}], "dedup": {}, "max_tokens": 256},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def entry(folder: str, *command: str) -> tuple[str, bytes, str]:
        """(key, packed rows, account)."""
        places = {"DUALIGN_TOKENS": folder, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True)
        (kept,) = [path for path in (tmp_path / folder).iterdir() if path.is_dir()]
        (shard,) = kept.glob("train/*.arrow")
        return kept.name, shard.read_bytes(), (kept / "about.json").read_text()

    alone = entry("one", "-m", "dualign", "prepare", "recipe.yaml")
    shared = entry("two", str(SCRIPT), "recipe.yaml", "--workers", "2", "--logs", "logs")
    assert shared == alone
    assert json.loads(alone[2])["rows"]["dropped"] == {"duplicate": 30}
