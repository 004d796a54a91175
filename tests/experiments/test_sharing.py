"""What runs of an experiment have in common is asked once."""

import json
from pathlib import Path
from types import SimpleNamespace

from dualign.experiments.sharing import FinishedStages


def test_answers_of_an_endpoint_are_shared_with_what_its_server_counted(tmp_path: Path) -> None:
    """Without that, a trace would pass for one that was closed in this process."""
    done, run_dir = tmp_path / "one" / "eval", tmp_path / "two" / "eval"
    done.mkdir(parents=True)
    (done / "run.json").write_text(json.dumps({"fingerprint": "a"}), encoding="utf-8")
    answer = {"key": "k", "generated": "4", "finished": True}
    lines = [
        {"model": "server", **answer, "usage": {"completion": 7}, "correct": True},
        {"model": "base", **answer, "key": "l"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (done / "samples.jsonl").write_text(text, encoding="utf-8")
    finished = FinishedStages()
    finished.add([done])
    entry = SimpleNamespace(name="eval", kind="eval")
    finished.give_answers([SimpleNamespace(entry=entry, fingerprint="b", run_dir=run_dir)])
    (file,) = tmp_path.rglob("two/**/samples.jsonl")
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [
        answer | {"usage": {"completion": 7}}, answer | {"key": "l"},
    ]  # fmt: skip
