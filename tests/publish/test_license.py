"""The license of a whole: by what each part asks, with the combinations worked out by hand."""

import pytest

from dualign.licenses import LICENSES
from dualign.publish.license import combine


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["cc0-1.0", "mit"], "mit"),
        (["apache-2.0", "cc-by-4.0"], "cc-by-4.0"),
        (["apache-2.0", "odc-by", "mit"], "odc-by"),
        (["apache-2.0", "cc-by-sa-4.0"], "cc-by-sa-4.0"),
        (["apache-2.0", "cc-by-nc-4.0", "cc-by-4.0"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["llama3.1", "apache-2.0"], "llama3.1"),
        (["gemma", "cc-by-4.0"], "gemma"),
        (["gpl-3.0", "lgpl-3.0", "mit"], "gpl-3.0"),
        (["cc-by-sa-3.0", "cc-by-sa-4.0"], "cc-by-sa-4.0"),
    ],
)  # fmt: skip
def test_the_whole_has_the_most_restrictive_license_of_its_parts(
    parts: list[str], whole: str
) -> None:
    of = {f"part{n}": part for n, part in enumerate(parts)}
    assert combine(of).id == whole
    assert combine(dict(reversed(of.items()))).id == whole, "in whatever order they come"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], "none of them keeps what the others ask"),
        (["llama3.1", "cc-by-nc-4.0"], "none of them keeps what the others ask"),
        (["llama3.1", "gemma"], "none of them keeps what the others ask"),
        (["gpl-3.0", "cc-by-sa-4.0"], "none of them keeps what the others ask"),
        (["cc-by-nd-4.0", "mit"], "part0 (cc-by-nd-4.0) allows no derivatives"),
        (["other", "mit"], "part0 (other): what it asks isn't known"),
        (["unknown"], "part0 (unknown): what it asks isn't known"),
        ([None, "mit"], "nothing is known of part0: --license-of part0=ID, or --license ID for the whole"),
        (["mit license"], "'mit license' isn't a license id that the hub knows"),
        ([], "there is no source"),
    ],
)  # fmt: skip
def test_where_no_part_keeps_all_that_is_asked_the_user_has_to_say(
    parts: list[str | None], why: str
) -> None:
    of = {f"part{n}": part for n, part in enumerate(parts)}
    found = combine(of)
    assert found.id is None and why in found.why
    if all(part is None or part in LICENSES for part in parts):
        assert combine(of, chosen="cc-by-4.0").id == "cc-by-4.0", "what is said comes first"


@pytest.mark.parametrize(
    ("parts", "license", "whole", "why"),
    [
        (["mit"], "apache-2.0", "apache-2.0", "said by the recipe's card"),
        (["apache-2.0", "mit"], "cc-by-nc-4.0", "cc-by-nc-4.0", "said by the recipe's card"),
        (["gemma", "mit"], "apache-2.0", None, "apache-2.0 doesn't keep what part0 (gemma) asks (attribution, terms:gemma)"),
        (["mit", "cc-by-nc-4.0"], "cc-by-4.0", None, "cc-by-4.0 doesn't keep what part1 (cc-by-nc-4.0) asks (non-commercial)"),
        (["cc-by-sa-4.0", None], "mit", None, "part0 (cc-by-sa-4.0) asks (attribution, share:cc-by-sa)"),
        (["mit", None], "mit", "mit", "not compared with part1, whose terms aren't known here"),
        (["gemma"], "other", "other", "whether it keeps what part0 (gemma) ask isn't known here"),
    ],
)  # fmt: skip
def test_the_recipes_license_holds_where_it_keeps_what_the_parts_ask(
    parts: list[str | None], license: str, whole: str | None, why: str
) -> None:
    of = {f"part{n}": part for n, part in enumerate(parts)}
    found = combine(of, card=license)
    assert found.id == whole and why in found.why
    assert combine(of, card=license, chosen="mit").id == "mit", "--license has been read"
