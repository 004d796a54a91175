"""Rows that a model wrote, as a dataset of the Hub."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from dualign.errors import PublishError
from dualign.publish.dataset import holds_rows, prepare_dataset
from dualign.publish.hub.metadata import HubClient
from dualign.publish.release import PublishRequest, StagedRelease
from dualign.publish.rows import write_parquet
from tests.processes import once
from tests.publish.test_traces import make_traces

SAID = {"sums": "cc-by-4.0", "tiny": "apache-2.0"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a stage whose traces a server wrote: 3 rows of think, 4 of no_think."""
    return once(tmp_path_factory, "published-traces", make_traces) / "runs"


@pytest.fixture
def traces(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs" / "traces"


def staged(run_dir: Path, folder: Path, **more: object) -> StagedRelease:
    folder.mkdir(exist_ok=True)
    keys = {"license_of": SAID, "languages": ("en",), **more}
    request = PublishRequest(run_dir=run_dir, repo_id="ada/sums", **keys)
    return prepare_dataset(request, folder, HubClient(reachable=False), None)


def test_rows_become_typed_parquet_with_a_configuration_of_each_mode(
    made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "staged"
    result = staged(made / "traces", folder)
    assert result.failed == [], result.checks
    think, quick = (f"data/{m}/train-00000-of-00001.parquet" for m in ("think", "no_think"))
    assert sorted(result.files) == ["README.md", *sorted((think, quick)), "run.json"]
    schema = pq.read_schema(folder / think)
    assert schema.equals(pq.read_schema(folder / quick))
    assert str(schema.field("messages").type).startswith(
        "list<element: struct<role: string, content: string"
    )
    card = DatasetCard(result.card).data
    assert (card.license, card.language, card.size_categories) == ("cc-by-4.0", ["en"], ["n<1K"])
    assert [config["config_name"] for config in card.configs] == ["default", "think", "no_think"]
    lines = (made / "traces" / "traces.jsonl").read_text().splitlines()
    for name, count in (("default", 7), ("think", 3), ("no_think", 4)):
        rows = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == count
    assert len(lines) == 7
    first = next(json.loads(line) for line in lines if '"think"' in line)
    same = load_dataset(str(folder), "think", split="train", cache_dir=str(tmp_path / "cache"))[0]
    assert same["messages"][-1]["reasoning_content"] == first["messages"][-1]["reasoning_content"]


def test_the_card_says_who_wrote_what_and_what_was_dropped(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    card = staged(made / "traces", folder).card
    record = json.loads((made / "traces" / "run.json").read_text())
    for words in (
        "written by `tiny`: 4 no_think, 3 think rows",
        "| tiny | an endpoint; it told no version |",
        "An answer counted if the verifier `integer` accepted it.",
        "| sums (a file) | train | sha256 ",
        "| 4 | cc-by-4.0 |",
        f"fingerprint `{record['fingerprint'][:16]}`",
        "The questions weren't screened",
        "Parts: sums: cc-by-4.0, tiny: apache-2.0.",
    ):
        assert words in card, words
    rows = record["rows"]
    assert f"| all |  | {rows['in']} | {rows['kept']} |" in card
    everything = "".join(
        file.read_text("utf-8", "replace") for file in folder.rglob("*") if file.is_file()
    )
    assert "127.0.0.1" not in everything, "what a server is called at home is nobody's business"


def test_the_snippet_of_the_card_runs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "staged"
    card = staged(made / "traces", folder).card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(compile(code.replace("ada/sums", str(folder)), "card", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("7 ['messages', 'mode'")


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("license", "license", "nothing is known of tiny: --license-of tiny=ID"),
        ("lost row", "rows", "traces.jsonl has 6 rows and the stage wrote 7"),
        ("counts", "rows", "run.json: 5 rows in, 4 kept and 0 dropped"),
        ("token", "row_secrets", "traces.jsonl:2 holds a Hugging Face token"),
        ("address", "personal", "traces.jsonl:2 holds an e-mail address"),
    ],
)
def test_what_is_wrong_with_rows_is_named(
    fault: str, check: str, message: str, traces: Path, tmp_path: Path
) -> None:
    lines = (traces / "traces.jsonl").read_text().splitlines()
    row, record = json.loads(lines[1]), json.loads((traces / "run.json").read_text())
    if fault == "lost row":
        lines = lines[:-1]
    elif fault == "counts":
        record["rows"] |= {"in": 5, "kept": 4, "dropped": {}}
    elif fault in ("token", "address"):
        row["messages"][0]["content"] += {"token": " hf_" + "a" * 34, "address": " bob@acme.io"}[
            fault
        ]
        lines[1] = json.dumps(row)
    (traces / "traces.jsonl").write_text("\n".join(lines) + "\n")
    (traces / "run.json").write_text(json.dumps(record))
    said = {"sums": "cc-by-4.0"} if fault == "license" else SAID
    result = staged(traces, tmp_path / "staged", license_of=said)
    found = {entry.name: entry for entry in result.checks}
    assert found[check].state == "failed" and message in found[check].message
    assert fault != "address" or "bob@acme.io" not in found[check].message


def test_rows_of_several_forms_stay_whole(tmp_path: Path) -> None:
    """Tools and arguments of calls have keys of their own in every row: they go as JSON text."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    other = {"type": "function", "function": {"name": "add", "arguments": {"a": "x"}}}
    rows = [
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [item]}], "mode": "think"}
        | {"chat_template_kwargs": {}, "tools": [tool]}
        for item, tool in ((call, {"name": "add", "x": 1}), (other, {"name": "add", "x": "1"}))
    ]
    files = write_parquet(rows, tmp_path)
    read = pq.read_table(tmp_path / files["think"]).to_pylist()
    assert [json.loads(row["messages"][0]["tool_calls"]) for row in read] == [[call], [other]]
    assert [json.loads(row["tools"])[0]["x"] for row in read] == [1, "1"]
    assert read[0]["chat_template_kwargs"] is None


def test_a_stage_without_rows_is_no_dataset(made: Path, road: Path, tmp_path: Path) -> None:
    assert holds_rows(made / "traces") and not holds_rows(road / "sft") and not holds_rows(tmp_path)
    with pytest.raises(PublishError, match="--what: is for models"):
        staged(made / "traces", tmp_path / "staged", contents="both")
