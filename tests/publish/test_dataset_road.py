"""Rows that a model wrote, from their stage to the hub, and from the hub by the card alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualign import engine
from dualign.recipe import load_recipe
from tests.preference.test_pairs import SUMS, teach
from tests.publish.empty_environment import empty_environment
from tests.publish.following import TOKEN, card_of, follow, run
from tests.publish.hub.api import Person
from tests.publish.hub.server import Hub, running_hub
from tests.publish.test_traces import make_traces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub"), {TOKEN: Person(name="ada")}) as running:
        yield running


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_environment(tmp_path_factory.mktemp("empty"), "datasets")


def published_rows(hub: Hub, home: Path, run_dir: Path, repo_id: str, *options: str) -> list[dict]:
    """Publish a stage's rows; return them as the stage wrote them."""
    done = run(hub, home, run_dir, repo_id, *options, "--language", "en", "--yes")
    assert done.status == 0, done.out + done.err
    repo = hub.store.repos[f"datasets/{repo_id}"]
    assert f"published: {hub.url}/datasets/{repo_id} at {repo.head.oid}" in done.out
    (file,) = (
        run_dir / name for name in ("traces.jsonl", "pairs.jsonl") if (run_dir / name).is_file()
    )
    return [json.loads(line) for line in file.read_text().splitlines()]


def require_same_rows(hub: Hub, home: Path, python: Path, repo_id: str, rows: list[dict]) -> None:
    """The snippet of the card prints the numbers of all rows and of each mode, and the first of each."""
    (printed,) = follow(card_of(hub, f"datasets/{repo_id}"), python, hub, home)
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    assert printed[0].startswith(f"{len(rows)} [")
    counts = {line.split(" ", 1)[0] for line in printed[1:]}
    of_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in modes}
    assert counts == {str(len(those)) for those in of_mode.values()}
    for those in of_mode.values():
        assert any(repr(those[0]["id"]) in line for line in printed[1:])


def test_traces_are_read_by_the_snippet_of_their_card(
    hub: Hub, python: Path, tmp_path: Path
) -> None:
    make_traces(tmp_path)
    licenses = ("--license-of", "sums=cc-by-4.0", "--license-of", "tiny=apache-2.0")
    rows = published_rows(hub, tmp_path, tmp_path / "runs" / "traces", "ada/traces", *licenses)
    require_same_rows(hub, tmp_path / "someone else", python, "ada/traces", rows)


def test_pairs_are_read_by_the_snippet_of_their_card(
    hub: Hub, python: Path, tmp_path: Path
) -> None:
    base = teach(tmp_path / "base", offsets=(0, 1))
    task = [{"id": q, "prompt": f"What is {q}?", "answer": str(right)} for q, right in SUMS.items()]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    (tmp_path / "sums.yaml").write_text("name: sums\nrows: sums.jsonl\nverifier: integer\n")
    stage = {"name": "pairs", "kind": "pairs", "model": str(base), "samples": 12}
    stage |= {"max_new_tokens": 40, "tasks": [str(tmp_path / "sums.yaml")]}
    recipe = {"name": "tiny", "output_dir": str(tmp_path / "runs"), "stages": [stage]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    engine.run(load_recipe(tmp_path / "recipe.yaml", []), say=lambda text: None)
    license = ("--license-of", "base=apache-2.0")
    rows = published_rows(hub, tmp_path, tmp_path / "runs" / "pairs", "ada/pairs", *license)
    require_same_rows(hub, tmp_path / "someone else", python, "ada/pairs", rows)
