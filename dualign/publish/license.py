"""The license of a model made from several sources: the one that keeps the obligations of all.

Not legal advice: if no license of the sources carries all obligations, the user has to choose.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dualign.config import nearest

# Obligations of whoever passes on a derived work. Of two licenses with the same obligations, the
# later one in this table is chosen: apache-2.0 rather than mit.
_OBLIGATIONS: dict[str, frozenset[str]] = {
    name: frozenset(obligations.split())
    for names, obligations in (
        ("cc0-1.0 unlicense wtfpl pddl", ""),
        ("mit isc zlib ncsa bsl-1.0 postgresql bsd bsd-2-clause bsd-3-clause afl-3.0 ms-pl", "notice"),
        ("apache-2.0 ecl-2.0 cdla-permissive-1.0 cdla-permissive-2.0 openmdw-1.0", "notice"),
        ("odc-by etalab-2.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0", "notice attribution"),
        ("openrail bigscience-openrail-m creativeml-openrail-m openrail++", "notice use:openrail"),
        ("bigscience-bloom-rail-1.0 bigcode-openrail-m", "notice use:openrail"),
        ("mpl-2.0", "notice share:mpl"),
        ("epl-1.0 epl-2.0", "notice share:epl"),
        ("eupl-1.1 eupl-1.2", "notice share:eupl"),
        ("lgpl lgpl-2.1 lgpl-3.0", "notice share:lgpl"),
        ("gpl gpl-2.0 gpl-3.0", "notice share:lgpl share:gpl"),
        ("agpl-3.0", "notice share:lgpl share:gpl share:agpl"),
        ("odbl", "notice attribution share:odbl"),
        ("cdla-sharing-1.0", "notice attribution share:cdla"),
        ("cc-by-sa-3.0 cc-by-sa-4.0", "notice attribution share:cc-by-sa"),
        ("cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0", "notice attribution non-commercial"),
        ("cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0", "notice attribution non-commercial share:cc-by-nc-sa"),
        ("cc-by-nd-4.0", "notice attribution no-derivatives"),
        ("cc-by-nc-nd-3.0 cc-by-nc-nd-4.0", "notice attribution non-commercial no-derivatives"),
        ("llama2", "notice attribution terms:llama2"),
        ("llama3", "notice attribution terms:llama3"),
        ("llama3.1", "notice attribution terms:llama3.1"),
        ("llama3.2", "notice attribution terms:llama3.2"),
        ("llama3.3", "notice attribution terms:llama3.3"),
        ("llama4", "notice attribution terms:llama4"),
        ("gemma", "notice attribution terms:gemma"),
    )
    for name in names.split()
}  # fmt: skip
# The hub accepts these too; their obligations aren't known here.
_UNRATED = frozenset(
    [
        "other",
        "unknown",
        "cc",
        "artistic-2.0",
        "c-uda",
        "gfdl",
        "h-research",
        "intel-research",
        "lppl-1.3c",
        "apple-ascl",
        "apple-amlr",
        "osl-3.0",
        "ofl-1.1",
        "lgpl-lr",
        "deepfloyd-if-license",
        "fair-noncommercial-research-license",
        "bsd-3-clause-clear",
        "grok2-community",
    ]
)
KNOWN = frozenset(_OBLIGATIONS) | _UNRATED
_CHOOSE = "say --license ID for the whole, after reading the licenses of its parts"


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """The license of the whole; `id` is None if there is none. run.json keeps these fields."""

    id: str | None
    of: Mapping[str, str | None]
    """source -> its license, None if it is unknown"""
    why: str


def combine(of: Mapping[str, str | None], *, chosen: str | None = None) -> License:
    """Return the license of a model made from sources with these licenses.

    Args:
        of: source -> its license, None if it is unknown.
        chosen: the user's choice for the whole, which wins.
    """
    invalid = [id for id in (chosen, *of.values()) if id is not None and id not in KNOWN]
    if invalid:
        hint = nearest(invalid[0], tuple(sorted(KNOWN)))
        why = f"{invalid[0]!r} isn't a license id that the hub knows{hint}"
        return License(id=None, of=of, why=why)
    if chosen:
        return License(id=chosen, of=of, why="said by --license")
    unknown = sorted(source for source, id in of.items() if id is None)
    if unknown:
        options = " ".join(f"--license-of {source}=ID" for source in unknown)
        why = f"nothing is known of {', '.join(unknown)}: {options}, or --license ID for the whole"
        return License(id=None, of=of, why=why)
    return _strictest(of)


def _strictest(of: Mapping[str, str | None]) -> License:
    """Choose the license whose obligations include those of all.

    {base: apache-2.0 (notice), rows: cc-by-4.0 (notice, attribution)} -> cc-by-4.0
    {rows: cc-by-sa-4.0 (share-alike), more: cc-by-nc-4.0 (non-commercial)} -> none
    """
    license_of = {source: id for source, id in of.items() if id}
    unrated = {source: id for source, id in license_of.items() if id in _UNRATED}
    if unrated or not license_of:
        subject = _listed(unrated) or "there is no source"
        return License(id=None, of=of, why=f"{subject}: what it asks isn't known; {_CHOOSE}")
    obligations = frozenset[str]().union(*(_OBLIGATIONS[id] for id in license_of.values()))
    if "no-derivatives" in obligations:
        closed = {s: id for s, id in license_of.items() if "no-derivatives" in _OBLIGATIONS[id]}
        why = f"{_listed(closed)} allows no derivatives, and a trained model may be one; {_CHOOSE}"
        return License(id=None, of=of, why=why)
    sufficient = {id for id in license_of.values() if _OBLIGATIONS[id] >= obligations}
    if not sufficient:
        why = f"{_listed(license_of)}: none of them keeps what the others ask; {_CHOOSE}"
        return License(id=None, of=of, why=why)
    strictest = max(sufficient, key=list(_OBLIGATIONS).index)
    return License(id=strictest, of=of, why=f"the most restrictive of {_listed(license_of)}")


def _listed(license_of: Mapping[str, str]) -> str:
    return ", ".join(f"{source} ({id})" for source, id in license_of.items())
