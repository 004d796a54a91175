"""`card:` of a recipe in what is published: what it adds, and where it is refused."""

import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from dualign.errors import PublishError
from dualign.publish.checks.provenance import check_license
from dualign.publish.hub.metadata import HubClient, RepoMetadata
from dualign.publish.publish import examine, finish, stage_and_check
from dualign.publish.release import PublishRequest
from dualign.publish.show import show
from dualign.recipe import keep_card, load_recipe
from dualign.terminal import wide_console

COMMIT = "a" * 40
CARD = {
    "license": "Apache-2.0",
    "license_of": {"train": "mit", "pairs": "mit", "sums": "mit"},
    "language": ["en", "de"],
    "tags": ["sums", "dualign"],
    "description": "It *adds* numbers.",
    "model_name": "Tiny sums",
    "base": f"acme/base@{COMMIT}",
}


def hub_with(license: str) -> HubClient:
    answers = {("model", "acme/base", COMMIT): RepoMetadata(commit=COMMIT, license=license)}
    return HubClient(reachable=False, answers=answers)


def carded(copied: Path, **changes: object) -> Path:
    """Give the pipeline a card, as a run after an edit of the recipe does."""
    recipe = yaml.safe_load((copied.parent / "recipe.yaml").read_text())
    (copied.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"card": CARD | changes}))
    return copied


@pytest.fixture
def out(road: Path, copied: Path) -> Path:
    shutil.copy(road.parent / "recipe.yaml", copied.parent)
    shutil.copy(road.parent / "make.py", copied.parent)
    carded(copied)
    keep_card(load_recipe(copied.parent / "recipe.yaml", [f"output_dir={copied}"]))
    return copied


def ask(run_dir: Path, **more: object) -> PublishRequest:
    return PublishRequest(run_dir=run_dir, repo_id="someone/tiny", **more)


def test_a_card_says_what_its_author_wants_said(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, folder = hub_with("mit"), tmp_path / "staged"
    folder.mkdir()
    release = examine(ask(out / "merged"), hub)
    assert (release.license.id, release.bases[0].revision) == ("apache-2.0", COMMIT)
    staged = finish(release, folder, stage_and_check(release, folder, hub))
    assert not {"card", "license", "base"} & set(staged.failed)
    card = ModelCard(staged.card)
    assert (card.data.license, card.data.language) == ("apache-2.0", ["en", "de"])
    assert card.data.tags == ["dualign", "dual-mode", "reasoning", "merge", "sums"]
    assert "# Tiny sums\n\nIt *adds* numbers.\n" in card.text
    show(staged, console=wide_console(120))
    assert "card: base, description, language, license" in capsys.readouterr().out


def test_what_the_command_says_comes_before_the_recipe(out: Path) -> None:
    wanted = {"license": "cc-by-nc-4.0", "languages": ("fr",), "license_of": {"train": "cc-by-4.0"}}
    release = examine(ask(out / "merged", **wanted), hub_with("mit"))
    assert (release.license.id, release.request.languages) == ("cc-by-nc-4.0", ("fr",))
    assert release.license.of["train"] == "cc-by-4.0"


@pytest.mark.parametrize(
    ("changes", "base", "message"),
    [
        ({}, "gemma", "card.license: apache-2.0 doesn't keep what acme/base (gemma) asks"),
        ({"license_of": {"train": "cc-by-sa-4.0"}}, "mit", "what train (cc-by-sa-4.0) asks"),
    ],
    ids=["base", "data"],
)
def test_a_license_that_drops_what_a_part_asks_is_refused(
    out: Path, changes: dict, base: str, message: str
) -> None:
    carded(out, **changes)
    hub = hub_with(base)
    outcome = check_license(examine(ask(out / "merged"), hub), hub)
    assert outcome.state == "failed" and message in outcome.message


def test_a_base_of_the_card_that_is_no_hub_id_is_said(out: Path) -> None:
    carded(out, base="mine")
    with pytest.raises(PublishError, match="mine: expected a hub id such as owner/name"):
        examine(ask(out / "merged"), hub_with("mit"))
