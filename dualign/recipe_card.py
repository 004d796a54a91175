"""`card:` of a recipe: what its author wants said on the Hub.

Nothing that a stage makes depends on it, so it isn't part of a fingerprint. `dualign run` keeps it in
the output folder with the place of the recipe; `dualign publish` reads the recipe anew, so that an
edited card needs no further run.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dualign.config import Document, nearest, parse, parse_value, read_yaml
from dualign.errors import ConfigError
from dualign.licenses import LICENSES, license_id
from dualign.rundir import write_json

_Faults = Iterator[tuple[str, str]]
_FILE = ".card.json"
_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th
ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
_ISO_639_1 = frozenset(_CODES.split())
_LONGER_CODE = re.compile(r"[a-z]{3}|code|multilingual")  # ISO 639-3 has 7,900: by their form
_SLUG = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")
_OUR_MARK = "<!-- dualign"


def language_fault(code: str) -> str | None:
    """Return what is wrong with a language code; None for `en`, `deu`, `pt-BR`, `multilingual`."""
    first, dash, region = code.partition("-")
    known = first in _ISO_639_1 or _LONGER_CODE.fullmatch(first)
    if known and (not dash or re.fullmatch(r"[A-Za-z]{2,4}", region)):
        return None
    return f"{code!r} isn't an ISO 639 code such as en"


def _license(value: str) -> _Faults:
    if license_id(value) is None:
        expected = "expected a license id of the Hub, such as apache-2.0"
        yield "", f"{expected}, found {value!r}{nearest(value.lower(), sorted(LICENSES))}"


def _license_of(value: Mapping[str, Any]) -> _Faults:
    for source, license in value.items():
        if not isinstance(license, str):
            yield source, f"expected a license id of the Hub, such as apache-2.0, found {license!r}"
            continue
        yield from ((source, message) for _, message in _license(license))


def _languages(value: str | tuple[str, ...]) -> _Faults:
    for code in as_tuple(value):
        if fault := language_fault(code):
            yield "", fault


def _tags(value: tuple[str, ...]) -> _Faults:
    for tag in value:
        if not tag.strip() or re.search(r"[,\n]", tag):
            yield "", f"expected short words without commas, found {tag!r}"


def _description(value: str) -> _Faults:
    if _OUR_MARK in value:
        yield (
            "",
            f"expected Markdown without {_OUR_MARK}, which marks the text that publish rewrites",
        )


def _line(value: str) -> _Faults:
    if not value.strip() or "\n" in value or len(value) > 96:
        yield "", f"expected a line of 1 to 96 characters, found {value!r}"


def _collection(value: str) -> _Faults:
    if _SLUG.fullmatch(value):
        return
    if not value.strip() or "\n" in value or "/" in value or len(value) > 60:
        yield (
            "",
            "expected a title of at most 60 characters, or a slug such as "
            f"owner/title-64f9a55bb3115b4f513ec026, found {value!r}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CardConfig:
    """What `dualign publish` says of a run on the Hub: `card:` at the top of a recipe, no stage.

    It changes nothing that a stage makes: a finished run stays finished when it is edited.
    """

    license: Annotated[str, _license] | None = None
    """of the whole: a license id of the Hub, or SPDX's; refused if it drops what a base's or a
    source's license asks; default: the most restrictive of them"""
    license_name: Annotated[str, _line] | None = None
    """with license: other: its name"""
    license_link: Annotated[str, _line] | None = None
    """with license: other: its address, or a file of the repository such as LICENSE"""
    license_of: Annotated[Mapping[str, Any], _license_of] = field(default_factory=dict)
    """base or source of data -> its license, where the Hub doesn't say it: {problems: apache-2.0}"""
    language: Annotated[str | tuple[str, ...], _languages] = ()
    """ISO 639 codes such as en; default: those of the base on the Hub"""
    tags: Annotated[tuple[str, ...], _tags] = ()
    """added to those that dualign sets"""
    description: Annotated[str, _description] | None = None
    """Markdown below the title"""
    model_name: Annotated[str, _line] | None = None
    """the title; default: the repository's name"""
    base: str | tuple[str, ...] = ()
    """what a base on this machine is on the Hub, as in --base: ID@COMMIT, or PATH=ID@COMMIT where
    there are several"""
    collection: Annotated[str, _collection] | None = None
    """the title of a collection of the repository's owner, made if there is none, or a collection's
    slug; joined after the upload"""

    def problems(self) -> list[tuple[str, str]]:
        """Refuse a license without the name and address that the Hub asks for, and names of none."""
        named = [key for key in ("license_name", "license_link") if getattr(self, key)]
        if self.license == "other" and len(named) < 2:
            return [("license", "other needs license_name and license_link")]
        if named and self.license != "other":
            return [(named[0], "is for license: other; the Hub knows the others by their ids")]
        return []


def as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return a key that may be a text or a list as a tuple."""
    return (value,) if isinstance(value, str) else value


def parse_card(document: Document) -> CardConfig | None:
    """Return the recipe's `card:`; None without one, or if it has problems, added to `document`."""
    value = document.value.get("card")
    return None if value is None else parse(CardConfig, value, document, ("card",))


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeCard:
    """A card and the file that it was read from, for people."""

    config: CardConfig
    file: str


def write_card(
    card: CardConfig | None, recipe: Path, overrides: Sequence[str], output_dir: Path
) -> None:
    """Write the card next to the run directories; without one, delete that of an earlier run."""
    file = output_dir / _FILE
    if card is None:
        file.unlink(missing_ok=True)
        return
    changes = [override for override in overrides if override.startswith("card.")]
    place = {"recipe": str(recipe.absolute()), "overrides": changes}
    write_json(file, {**place, "card": asdict(card)})


def read_card(output_dir: Path) -> RecipeCard | None:
    """Return the card of the recipe that a folder's stages were run from, as the recipe is now.

    If the recipe isn't there any more it is the card that the last run had.

    Raises:
        ConfigError: the card is wrong, with every problem of it.
    """
    file = output_dir / _FILE
    if not file.is_file():
        return None
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    recipe = Path(str(kept.get("recipe")))
    if recipe.is_file():
        document = read_yaml(recipe)
        for override in kept.get("overrides") or ():
            _set(document.value, str(override))
    else:
        values = {key: value for key, value in dict(kept["card"]).items() if value}
        document = Document(file=str(file), value={"card": values})
    card = parse_card(document)
    problems = [problem for problem in document.problems if ": card" in problem]
    if problems:
        raise ConfigError("\n".join([f"{document.file}: the card", *problems]))
    return None if card is None else RecipeCard(config=card, file=document.file)


def _set(recipe: dict[str, Any], override: str) -> None:
    """Apply `card.license=mit` or `card.license_of.rows=mit`."""
    name, _, text = override.partition("=")
    *outer, last = name.split(".")
    target: Any = recipe
    for key in outer:
        target = target[int(key)] if isinstance(target, list) else target.setdefault(key, {})
    if isinstance(target, list):
        target[int(last)] = parse_value(text)
    else:
        target[last] = parse_value(text)
