"""The licence of what came from several licences: the one that keeps every obligation of all of them.

Not legal advice: where no licence of the sources carries all obligations, the user has to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dualign.config import nearest

# What each asks of those who pass a work made from it on. In order: of two that ask the same, the later is taken.
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
# The hub takes these too; what they ask isn't known here.
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
_SAY = "say --license ID for the whole, after reading the licences of its parts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """A computed licence, or why there is none. `of`: what each source has, None where nobody said."""

    id: str | None
    of: Mapping[str, str | None]
    why: str

    @property
    def faults(self) -> bool:
        return self.id is None


def combine(of: Mapping[str, str | None], *, said: str | None = None) -> Licence:
    """The licence of a model made from sources with these licences; what the user said comes first."""
    wrong = [one for one in (said, *of.values()) if one is not None and one not in KNOWN]
    if wrong:
        hint = nearest(wrong[0], tuple(sorted(KNOWN)))
        why = f"{wrong[0]!r} isn't a licence id that the hub knows{hint}"
        return Licence(id=None, of=of, why=why)
    if said:
        return Licence(id=said, of=of, why="said by --license")
    silent = sorted(source for source, one in of.items() if one is None)
    if silent:
        each = " ".join(f"--license-of {source}=ID" for source in silent)
        why = f"nothing is known of {', '.join(silent)}: {each}, or --license ID for the whole"
        return Licence(id=None, of=of, why=why)
    return _strictest(of)


def _strictest(of: Mapping[str, str | None]) -> Licence:
    rated = {source: one for source, one in of.items() if one}
    unrated = {source: one for source, one in rated.items() if one in _UNRATED}
    if unrated or not rated:
        said = _listed(unrated) or "there is no source"
        return Licence(id=None, of=of, why=f"{said}: what it asks isn't known; {_SAY}")
    asked = frozenset[str]().union(*(_OBLIGATIONS[one] for one in rated.values()))
    if "no-derivatives" in asked:
        closed = {s: one for s, one in rated.items() if "no-derivatives" in _OBLIGATIONS[one]}
        why = f"{_listed(closed)} allows no derivatives, and a trained model may be one; {_SAY}"
        return Licence(id=None, of=of, why=why)
    order = list(_OBLIGATIONS)
    enough = {one for one in rated.values() if _OBLIGATIONS[one] >= asked}
    if not enough:
        why = f"{_listed(rated)}: none of them keeps what the others ask; {_SAY}"
        return Licence(id=None, of=of, why=why)
    chosen = max(enough, key=order.index)
    return Licence(id=chosen, of=of, why=f"the most restrictive of {_listed(rated)}")


def _listed(of: Mapping[str, str]) -> str:
    return ", ".join(f"{source} ({one})" for source, one in of.items())
