"""Model folders whose JSON no one wrote with care: they are read, or refused in words."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualign.errors import DualignError
from dualign.merging.merge import prepare
from dualign.merging.mergekit.load import load
from tests.checkpoints.folders import CONFIG, TOKENS, shard, tensors, write_model

SMALL = settings(max_examples=60)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = [*CONFIG, "rope_parameters", "rope_scaling", "layer_types", "pad_token_id", "text_config"]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_model(tmp_path / "a", 1)
    write_model(tmp_path / "b", 2)
    return tmp_path


def read_or_refused(folder: Path, more: str = "") -> None:
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
    (folder / "merge.yml").write_text(text + more)
    try:
        prepare(load(folder / "merge.yml"), seed=0)
    except DualignError as error:
        assert str(error)


ODD = [None, True, -1, 3, 1e9, "x", "../x", [], [None], [1, "a"], {}, {"a": 1}, {"rope_theta": "x"}]


@pytest.mark.parametrize("key", KEYS)
def test_any_value_of_a_config_is_read_or_refused(pair: Path, key: str) -> None:
    for value in ODD:
        # With a known model_type transformers would be asked for its defaults, which takes seconds.
        whole = {**CONFIG, "model_type": "unheard-of", key: value}
        (pair / "b" / "config.json").write_text(json.dumps(whole))
        read_or_refused(pair)
        read_or_refused(pair, "config_from: b\n")


@SMALL
@given(st.sampled_from(KEYS), anything)
def test_any_nested_value_of_a_config_is_read_or_refused(
    pair: Path, key: str, value: object
) -> None:
    whole = {**CONFIG, "model_type": "unheard-of", key: value}
    (pair / "b" / "config.json").write_text(json.dumps(whole))
    read_or_refused(pair, "config_from: b\ntokenizer_source: union\n")


@SMALL
@given(anything | st.dictionaries(st.sampled_from([*tensors(0), "x"]), anything))
def test_any_index_is_read_or_refused(pair: Path, weight_map: object) -> None:
    if (pair / "b" / "model.safetensors").is_file():
        shard(pair / "b", 2)
    text = json.dumps({"weight_map": weight_map})
    (pair / "b" / "model.safetensors.index.json").write_text(text)
    read_or_refused(pair)


tokenizers = st.fixed_dictionaries(
    {
        "model": anything
        | st.fixed_dictionaries(
            {
                "vocab": anything
                | st.dictionaries(st.sampled_from([*TOKENS, "c"]), st.integers(-1, 13))
                | st.lists(st.tuples(st.text(max_size=3), st.floats(-9, 0)), max_size=4),
            },
            optional={"merges": anything, "type": anything},
        ),
        "added_tokens": anything
        | st.lists(
            st.fixed_dictionaries(
                {"content": st.sampled_from(["<pad>", "<new>"]), "id": st.integers(-1, 13)}
            ),
            max_size=2,
        ),
    },
    optional={"post_processor": anything, "normalizer": anything},
)


@SMALL
@given(tokenizers, st.sampled_from(["union", "a", "b"]))
def test_any_tokenizer_is_read_or_refused(pair: Path, content: object, source: str) -> None:
    (pair / "b" / "tokenizer.json").write_text(json.dumps(content))
    read_or_refused(pair)
    read_or_refused(pair, f"tokenizer_source: {source}\nconfig_from: a\n")


@SMALL
@given(
    st.dictionaries(
        st.sampled_from(["eos_token", "chat_template", "eos_token_id", "added_tokens_decoder"]),
        anything,
        min_size=1,
    )
)
def test_any_tokenizer_settings_are_read_or_refused(pair: Path, content: object) -> None:
    (pair / "b" / "tokenizer_config.json").write_text(json.dumps(content))
    (pair / "b" / "generation_config.json").write_text(json.dumps(content))
    (pair / "b" / "chat_template.jinja").unlink(missing_ok=True)
    read_or_refused(pair)
    read_or_refused(pair, "chat_template: auto\ntokenizer_from: b\n")
