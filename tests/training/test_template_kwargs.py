"""Variables of a template are what jinja can read and a saved template can hold, exactly."""

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dualign.errors import ConfigError
from dualign.models.tokenizer import with_defaults
from dualign.recipe import load_recipe
from dualign.training.template_kwargs import template_kwargs_issues

REFUSED = {
    "date: 2025-01-02": 'YAML reads a date, and a template takes text: write "2025-01-02" in quotes',
    "at: 2025-01-02 10:00:00": "YAML reads a date",
    "when: [{day: 2025-01-02}]": "YAML reads a date",
    "my-flag: 1": "'my-flag' is no name of a variable",
    "2fast: 1": "'2fast' is no name of a variable",
    "my flag: 1": "'my flag' is no name of a variable",
    "größe: 1": "'größe' is no name of a variable",
    "if: 1": "if is a word of jinja",
    "loop: 1": "loop is a word of jinja",
    "messages: []": "messages can't be set: the row's messages",
    "tools: []": "tools can't be set",
    "add_generation_prompt: true": "add_generation_prompt can't be set",
    "eos_token: x": "eos_token can't be set: the tokenizer's",
    "rate: .nan": "nan is no number that a template can hold",
    "rate: -.inf": "-inf is no number",
    "data: !!binary aGVsbG8=": "found bytes",
}


@pytest.mark.parametrize(("line", "expected"), REFUSED.items(), ids=REFUSED)
def test_what_a_saved_template_cannot_hold_is_refused(
    tmp_path: Path, line: str, expected: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "output_dir: out\nkind: sft\nmodel: owner/model\ndata: {sources: [{path: rows.jsonl}]}\n"
        f"template_kwargs:\n  {line}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, [])
    assert expected in str(caught.value)
    assert "template_kwargs" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'date: "2025-01-02"',
        "year: 2025",
        "deep: {a: [1, {b: null}], c: true}",
        "emoji: 😀é\U0001f600",
    ],
)
def test_the_rest_is_taken(text: str) -> None:
    assert template_kwargs_issues(yaml.safe_load(text)) == []


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(VALUES)
def test_a_default_of_the_saved_template_is_the_value_that_was_trained_with(value: Any) -> None:
    assert template_kwargs_issues({"value": value}) == []
    seen: list[Any] = []
    environment = jinja2.Environment()
    environment.globals["keep"] = lambda item: seen.append(item) or ""
    environment.from_string(with_defaults("{{ keep(value) }}", {"value": value})).render()
    assert seen == [value]
