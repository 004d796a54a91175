"""`card:` of a recipe: checked when it is read, kept for publishing, and no part of what a stage makes."""

from pathlib import Path

import pytest
import yaml

from dualign import engine
from dualign.errors import ConfigError
from dualign.licenses import license_id
from dualign.recipe import keep_card, load_recipe
from dualign.recipe_card import read_card

CARD = {"license": "Apache-2.0", "language": "en", "tags": ["sums"], "description": "Adds numbers."}
LINK = {"license_name": "mine", "license_link": "LICENSE"}


def write(folder: Path, card: object, stages: bool = True) -> Path:
    """A recipe of one script, as a pipeline or as a stage's own file."""
    stage = {"name": "data", "kind": "script", "script": "make.py"}
    (folder / "make.py").write_text("")
    outer = {"output_dir": str(folder / "out"), **({} if card is None else {"card": card})}
    recipe = {**outer, **({"stages": [stage]} if stages else stage)}
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"license": "apache2"}, "card.license: expected a license id of the Hub, such as apache-2.0, found 'apache2' (did you mean 'apache-2.0'?)"),
        ({"license": 2}, "card.license: expected text, found 2 (a whole number)"),
        ({"license": "other"}, "card.license: other needs license_name and license_link"),
        ({"license": "mit", **LINK}, "card.license_name: is for license: other"),
        ({"license_of": {"rows": "mitt"}}, "card.license_of.rows: expected a license id of the Hub"),
        ({"license_of": {"rows": 1}}, "card.license_of.rows: expected a license id of the Hub"),
        ({"language": "English"}, "card.language: 'English' isn't an ISO 639 code such as en"),
        ({"language": ["en", "xx"]}, "card.language: 'xx' isn't an ISO 639 code"),
        ({"language": True}, "card.language: expected text or a list"),
        ({"tags": "sums"}, "card.tags: expected a list, found 'sums' (text)"),
        ({"tags": ["a, b"]}, "card.tags: expected short words without commas, found 'a, b'"),
        ({"description": "x <!-- dualign: end --> y"}, "card.description: expected Markdown without <!-- dualign"),
        ({"model_name": "a\nb"}, "card.model_name: expected a line of 1 to 96 characters"),
        ({"collection": "ada/sums"}, "card.collection: expected a title of at most 60 characters, or a slug such as"),
        ({"licence": "mit"}, "card.licence: unknown key (did you mean 'license'?)"),
        ("mit", "card: expected keys with values, found 'mit' (text)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stages", [True, False], ids=["pipeline", "stage"])
def test_what_the_hub_would_not_take_is_named_by_key(
    card: object, message: str, stages: bool, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(write(tmp_path, card, stages), [])
    assert message in str(error.value)
    assert "mine.yaml:" in str(error.value)


def test_a_sound_card_is_read_and_may_be_overridden(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, CARD), ["card.license=mit", "card.license_of.rows=mit"])
    assert recipe.card is not None
    assert (recipe.card.license, recipe.card.license_of) == ("mit", {"rows": "mit"})
    assert [license_id(text) for text in ("GPL-3.0-only", "MIT", "0BSD")] == [
        "gpl-3.0",
        "mit",
        None,
    ]


def test_a_finished_run_stays_finished_whatever_its_card_says(tmp_path: Path) -> None:
    prints = []
    for card in (None, CARD, {**CARD, "license": "mit"}):
        path = write(tmp_path, card)
        engine.run(load_recipe(path, []), say=lambda text: None)
        (status,) = engine.statuses(load_recipe(path, []))
        assert status.state == "done"
        prints.append((status.fingerprint, (status.run_dir / "run.json").stat().st_mtime_ns))
    assert len(set(prints)) == 1


def test_publishing_reads_the_card_as_the_recipe_has_it_now(tmp_path: Path) -> None:
    path, out = write(tmp_path, CARD), tmp_path / "out"
    out.mkdir()
    assert read_card(out) is None
    keep_card(load_recipe(path, ["card.license_of.rows=mit", "seed=3"]))
    write(tmp_path, {**CARD, "description": "Adds numbers well."})
    card = read_card(out)
    assert card is not None and card.file == str(path)
    assert card.config.description == "Adds numbers well."
    assert card.config.license_of == {"rows": "mit"}, "the command line's is kept"
    write(tmp_path, {"license": "apache2"})
    with pytest.raises(ConfigError, match=r"mine\.yaml:\d+: card\.license: expected a license id"):
        read_card(out)
    path.unlink()
    card = read_card(out)
    assert card is not None and card.config.description == "Adds numbers.", "that of the last run"
    keep_card(load_recipe(write(tmp_path, None), []))
    assert read_card(out) is None
