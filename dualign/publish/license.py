"""The license of a model made from several sources: the one that keeps the obligations of all.

Not legal advice: if no license of the sources carries all obligations, the user has to choose.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dualign.config import nearest
from dualign.licenses import LICENSES, OBLIGATIONS, UNRATED

_CHOOSE = "say --license ID for the whole, after reading the licenses of its parts"


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """The license of the whole; `id` is None if there is none. run.json keeps these fields."""

    id: str | None
    of: Mapping[str, str | None]
    """source -> its license, None if it is unknown"""
    why: str


def combine(
    of: Mapping[str, str | None], *, chosen: str | None = None, card: str | None = None
) -> License:
    """Return the license of a model made from sources with these licenses.

    Args:
        of: source -> its license, None if it is unknown.
        chosen: the user's choice for the whole, which wins.
        card: the recipe's, which wins if it keeps what the licenses of the sources ask.
    """
    invalid = [id for id in (chosen, *of.values()) if id is not None and id not in LICENSES]
    if invalid:
        hint = nearest(invalid[0], tuple(sorted(LICENSES)))
        why = f"{invalid[0]!r} isn't a license id that the hub knows{hint}"
        return License(id=None, of=of, why=why)
    if chosen:
        return License(id=chosen, of=of, why="said by --license")
    if card:
        return _of_card(of, card)
    unknown = sorted(source for source, id in of.items() if id is None)
    if unknown:
        options = " ".join(f"--license-of {source}=ID" for source in unknown)
        why = f"nothing is known of {', '.join(unknown)}: {options}, or --license ID for the whole"
        return License(id=None, of=of, why=why)
    return _strictest(of)


def _of_card(of: Mapping[str, str | None], license: str) -> License:
    """Return the recipe's license, unless it drops an obligation of a source whose license is known.

    {base: gemma}, apache-2.0 -> none; {base: mit}, apache-2.0 -> apache-2.0
    """
    origin = "said by the recipe's card"
    rated = {source: id for source, id in of.items() if id in OBLIGATIONS}
    unread = sorted(set(of) - set(rated))
    if license in UNRATED:
        why = (
            f"{origin}; whether it keeps what {_listed(rated) or 'its parts'} ask isn't known here"
        )
        return License(id=license, of=of, why=why)
    stricter = {s: id for s, id in rated.items() if not OBLIGATIONS[id] <= OBLIGATIONS[license]}
    if stricter:
        lost = sorted(
            set().union(*(OBLIGATIONS[id] for id in stricter.values())) - OBLIGATIONS[license]
        )
        why = (
            f"card.license: {license} doesn't keep what {_listed(stricter)} asks ({', '.join(lost)}); "
            f"leave card.license out for the most restrictive one, or {_CHOOSE}"
        )
        return License(id=None, of=of, why=why)
    if unread:
        origin += f"; not compared with {', '.join(unread)}, whose terms aren't known here"
    return License(id=license, of=of, why=origin)


def _strictest(of: Mapping[str, str | None]) -> License:
    """Choose the license whose obligations include those of all.

    {base: apache-2.0 (notice), rows: cc-by-4.0 (notice, attribution)} -> cc-by-4.0
    {rows: cc-by-sa-4.0 (share-alike), more: cc-by-nc-4.0 (non-commercial)} -> none
    """
    license_of = {source: id for source, id in of.items() if id}
    unrated = {source: id for source, id in license_of.items() if id in UNRATED}
    if unrated or not license_of:
        subject = _listed(unrated) or "there is no source"
        return License(id=None, of=of, why=f"{subject}: what it asks isn't known; {_CHOOSE}")
    obligations = frozenset[str]().union(*(OBLIGATIONS[id] for id in license_of.values()))
    if "no-derivatives" in obligations:
        closed = {s: id for s, id in license_of.items() if "no-derivatives" in OBLIGATIONS[id]}
        why = f"{_listed(closed)} allows no derivatives, and a trained model may be one; {_CHOOSE}"
        return License(id=None, of=of, why=why)
    sufficient = {id for id in license_of.values() if OBLIGATIONS[id] >= obligations}
    if not sufficient:
        why = f"{_listed(license_of)}: none of them keeps what the others ask; {_CHOOSE}"
        return License(id=None, of=of, why=why)
    strictest = max(sufficient, key=list(OBLIGATIONS).index)
    return License(id=strictest, of=of, why=f"the most restrictive of {_listed(license_of)}")


def _listed(license_of: Mapping[str, str | None]) -> str:
    return ", ".join(f"{source} ({id})" for source, id in license_of.items())
