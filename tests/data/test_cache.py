"""SFTData data is cached under a key: all that it depends on changes the key, and nothing else does."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data import prepare
from dualign.data.cache import cache_key, cached
from dualign.data.config import DataConfig, DecontaminateConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.text.template import load_template

Write = Callable[[list[dict[str, Any]], str], Path]


def rows(count: int = 4) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": "a"}]}
        for at in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUALIGN_TOKENS", str(tmp_path / "cached"))
    return tmp_path / "cached"


def key_of(data: DataConfig, tokenizer: PreTrainedTokenizerFast, **given: Any) -> str | None:
    kind = given.pop("kind", "sft")
    template = given.pop("template", load_template("dualign", tokenizer=tokenizer))
    base = given.pop("base", None)
    seed = given.pop("seed", 0)
    return cache_key(kind, DataRequest(data, tokenizer, template, seed=seed, base=base))


def test_whatever_the_data_depends_on_changes_the_key(
    write_rows: Write,
    tokenizer: PreTrainedTokenizerFast,
    llama_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    path = write_rows(rows(), "a.jsonl")
    task = tmp_path / "task.yaml"
    task.write_text("name: sums\nrows: sums.jsonl\nverifier: integer\n")
    (tmp_path / "sums.jsonl").write_text("{}\n")
    source = SourceConfig(path=str(path))
    data = DataConfig(sources=(source,))
    template = load_template("dualign", tokenizer=tokenizer)
    told = replace(data, decontaminate=DecontaminateConfig(tasks=(str(task),)))
    keys = {"plain": key_of(data, tokenizer), "tasks": key_of(told, tokenizer)}
    (tmp_path / "sums.jsonl").write_text("{} \n")
    keys["other rows of a task"] = key_of(told, tokenizer)
    for change in (
        {"supervise": "answers"},
        {"packing": "wrapped"},
        {"max_tokens": 64},
        {"too_long": "cut_end"},
        {"conflicts": "drop"},
        {"validation_rows": 1},
    ):
        keys[str(change)] = key_of(replace(data, **change), tokenizer)  # type: ignore[arg-type]
    for change in ({"weight": 0.5}, {"thinking_budget": 9}, {"label": "b"}, {"mode": "no_think"}):
        changed = replace(data, sources=(replace(source, **change),))  # type: ignore[arg-type]
        keys[str(change)] = key_of(changed, tokenizer)
    keys["seed"] = key_of(data, tokenizer, seed=1)
    keys["kind"] = key_of(data, tokenizer, kind="pairs")
    keys["tokenizer"] = key_of(data, llama_tokenizer, template=template)
    keys["template"] = key_of(data, tokenizer, template=replace(template, text=template.text + " "))
    keys["kwargs"] = key_of(data, tokenizer, template=replace(template, template_kwargs={"a": 1}))
    keys["special"] = key_of(data, tokenizer, template=replace(template, special_tokens={}))
    with path.open("a") as out:
        out.write(json.dumps(rows(1)[0]) + "\n")
    keys["rows"] = key_of(data, tokenizer)
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys)


def test_nothing_else_changes_the_key(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write_rows(rows(), "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),))
    before = key_of(data, tokenizer)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "a.jsonl")
    moved.touch()
    there = replace(data, sources=(SourceConfig(path="a.jsonl"),), num_proc=2)
    template = replace(load_template("dualign", tokenizer=tokenizer), name="another name")
    assert key_of(there, tokenizer, base=moved.parent, template=template) == before
    assert key_of(replace(there, cache=False), tokenizer, base=moved.parent) is None


def test_the_code_digest_is_part_of_the_key(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(sources=(SourceConfig(path=str(write_rows(rows(), "a.jsonl"))),))
    before = key_of(data, tokenizer)
    monkeypatch.setattr("dualign.data.cache._code_digest", lambda: "another version")
    assert key_of(data, tokenizer) != before


def test_a_second_run_reads_what_the_first_kept(
    write_rows: Write,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_rows(rows(9), "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=64, validation_rows=2)
    template = load_template("dualign", tokenizer=tokenizer)
    fresh = prepare_sft(DataRequest(replace(data, cache=False), tokenizer, template, seed=0))
    assert not folder.exists()
    first = prepare_sft(DataRequest(data, tokenizer, template, seed=0))
    monkeypatch.setattr(prepare, "mix", lambda *_: pytest.fail("prepared again"))
    second = prepare_sft(DataRequest(data, tokenizer, template, seed=0))
    for made in (first, second):
        assert made.train.to_list() == fresh.train.to_list()
        assert made.validation is not None and fresh.validation is not None
        assert made.validation.to_list() == fresh.validation.to_list()
        assert (made.groups, made.fill) == (fresh.groups, fresh.fill)
        assert json.dumps(made.rows) == json.dumps(fresh.rows)
        assert json.dumps(made.sources) == json.dumps(fresh.sources)


def test_pairs_are_kept_too(
    write_rows: Write,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [{"prompt": f"q{at}", "chosen": "yes", "rejected": "no"} for at in range(3)]
    data = DataConfig(sources=(SourceConfig(path=str(write_rows(made, "a.jsonl"))),))
    template = load_template("dualign", tokenizer=tokenizer)
    first = prepare_pairs(DataRequest(data, tokenizer, template, seed=0))
    monkeypatch.setattr(prepare, "mix", lambda *_: pytest.fail("prepared again"))
    assert (
        prepare_pairs(DataRequest(data, tokenizer, template, seed=0)).train.to_list()
        == first.train.to_list()
    )


def test_a_half_written_folder_is_not_taken_for_a_whole_one(folder: Path) -> None:
    import datasets

    def fails() -> Any:
        return {"train": None}, {}

    with pytest.raises(AttributeError):
        cached("key", fails)
    assert not (folder / "key").exists()
    table = datasets.Dataset.from_dict({"a": [1]})
    tables, about = cached("key", lambda: ({"train": table}, {"fill": 1.0}))
    assert (tables["train"]["a"][:], about) == ([1], {"fill": 1.0})


TAKES_TURNS = """
import sys
from pathlib import Path
import datasets
from dualign.data.cache import cached
def make():
    with Path(sys.argv[1]).open("a") as out:
        out.write("made\\n")
    print("makes it", flush=True)
    sys.stdin.readline()
    return {"train": datasets.Dataset.from_dict({"a": [1, 2]})}, {"fill": 0.5}
print("asks", flush=True)
tables, about = cached("key", make)
print(tables["train"]["a"][:], about["fill"])
"""


def test_of_two_processes_at_once_one_prepares_and_both_read(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "made.txt"
    command = [sys.executable, "-c", TAKES_TURNS, str(log)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes)
    assert [first.stdout.readline(), first.stdout.readline()] == ["asks\n", "makes it\n"]
    second = subprocess.Popen(command, **pipes)
    assert second.stdout.readline() == "asks\n"
    assert first.communicate("\n")[0] == second.communicate("\n")[0] == "[1, 2] 0.5\n"
    assert log.read_text() == "made\n"
