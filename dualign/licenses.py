"""License ids of the Hub, and what each asks of whoever passes on a derived work."""

# Obligations of whoever passes on a derived work. Of two licenses with the same obligations, the
# later one in this table is chosen: apache-2.0 rather than mit.
OBLIGATIONS: dict[str, frozenset[str]] = {
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
UNRATED = frozenset(
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
LICENSES = frozenset(OBLIGATIONS) | UNRATED
_SPDX_ENDINGS = ("-only", "-or-later")


def license_id(text: str) -> str | None:
    """Return the Hub's id of a license, from its own or SPDX's spelling: `GPL-3.0-only` -> `gpl-3.0`."""
    name = text.strip().lower()
    for ending in _SPDX_ENDINGS:
        name = name.removesuffix(ending)
    return name if name in LICENSES else None
