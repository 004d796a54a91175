"""Models of different vocabularies: whose rows go where, and that texts are cut as before."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from dualign.checkpoints.adapters import fold
from dualign.cli.main import main
from dualign.errors import ConfigError, MergeError
from dualign.merging.merge import prepare
from dualign.merging.mergekit.load import load
from dualign.merging.methods.table import METHODS
from dualign.merging.output import fingerprint, merge_into
from dualign.merging.verify import verify_folder
from tests.checkpoints.folders import change_json, read, write_json

TEXTS = ["the cat sat on the mat", "a <think> here </think> and the rest", "12 + 30 = 42 <new>?"]
CORPUS = [
    "the cat sat on the mat and the hat",
    "thinking there then other than that",
    "12 + 30 = 42",
]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def trained(corpus: Sequence[str], size: int, added: Sequence[str | AddedToken] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer, as the embedded model's is, with its first three ids special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def moved(tokenizer: Tokenizer, order: Sequence[int]) -> Tokenizer:
    """The same tokenizer, the token with id i now with id order[i]."""
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: order[place] for token, place in vocab.items()}
    for token in content["added_tokens"]:
        token["id"] = order[token["id"]]
    content["added_tokens"].sort(key=lambda item: item["id"])
    return Tokenizer.from_str(json.dumps(content))


def model_of(
    folder: Path, tokenizer: Tokenizer, seed: int, *, rows: int | None = None, **config: Any
) -> Path:
    """A tiny model with its tokenizer; its special ids are those of the tokenizer's tokens."""
    rows = rows or tokenizer.get_vocab_size()
    ids = {f"{name}_token_id": tokenizer.token_to_id(token)
           for name, token in (("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))}  # fmt: skip
    settings = {"vocab_size": rows, "hidden_size": 16, "intermediate_size": 24, **ids}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    settings |= {"max_position_embeddings": 64, "tie_word_embeddings": True, **config}
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(LlamaConfig(**settings)).save_pretrained(folder)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = "{{ messages }}"
    wrapped.save_pretrained(folder)
    return folder


def merge(folder: Path, text: str, out: str = "out") -> Path:
    (folder / "merge.yml").write_text(text)
    merge_into(load(folder / "merge.yml"), folder / out, force=True)
    return folder / out


def soup(*names: str, more: str = "") -> str:
    entries = "".join(f"  - {{model: {name}, parameters: {{weight: 1}}}}\n" for name in names)
    return f"merge_method: linear\nmodels:\n{entries}{more}\n"


def logits(folder: Path, text: str) -> torch.Tensor:
    """By token string, so that models of one vocabulary in another order can be compared."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        found = model(ids).logits[0]
    order = [place for _, place in sorted(tokenizer.get_vocab().items())]
    return found[:, order]


def ids_of(folder: Path) -> dict[str, int]:
    return AutoTokenizer.from_pretrained(folder).get_vocab()


def tokens(folder: Path, text: str) -> list[str]:
    return AutoTokenizer.from_pretrained(folder).tokenize(text)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_merged_with_itself_in_another_order_is_the_same_model(
    tmp_path: Path, tied: bool
) -> None:
    tokenizer = trained(CORPUS, 300, ["<think>", "</think>"])
    size = tokenizer.get_vocab_size()
    a = model_of(tmp_path / "a", tokenizer, 1, tie_word_embeddings=tied)
    # Pieces in any order, and the two added tokens, which come after them, in the other one.
    order = [*np.random.default_rng(0).permutation(size - 2).tolist(), size - 1, size - 2]
    b = model_of(tmp_path / "b", moved(tokenizer, order), 1, tie_word_embeddings=tied)
    model, other = (AutoModelForCausalLM.from_pretrained(item) for item in (a, b))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name in ("embed_tokens", "lm_head"):
            mine = model.lm_head if name == "lm_head" else model.model.embed_tokens
            theirs = other.lm_head if name == "lm_head" else other.model.embed_tokens
            theirs.weight[order] = mine.weight.clone()
    other.save_pretrained(b)
    for source in ("union", "a", "b"):
        out = merge(tmp_path, soup("a", "b", more=f"tokenizer_source: {source}"), source)
        for text in TEXTS:
            assert tokens(out, text) == tokens(a, text)
            torch.testing.assert_close(logits(out, text), logits(a, text), atol=1e-6, rtol=0)
        config = json.loads((out / "config.json").read_text())
        settings = json.loads((out / "generation_config.json").read_text())
        end = ids_of(out)["</s>"]
        assert config["eos_token_id"] == settings["eos_token_id"] == end
        assert end == ids_of(tmp_path / ("b" if source == "b" else "a"))["</s>"]
        assert verify_folder(out, tensors=100).tensors


def test_a_union_takes_each_row_from_where_the_token_is(tmp_path: Path) -> None:
    same = trained(CORPUS, 300)
    new = AddedToken("<new>", special=True, normalized=False)
    a = model_of(tmp_path / "a", trained(CORPUS, 300, ["<think>"]), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 300, [new, "<think>"]), 2)
    c = model_of(tmp_path / "c", same, 3)
    out = merge(tmp_path, soup("a", "b", "c", more="tokenizer_source: union"))
    A, B, C, found = (read(item)[EMBED].astype(np.float64) for item in (a, b, c, out))
    size = same.get_vocab_size()
    assert found.shape[0] == size + 2
    np.testing.assert_allclose(found[:size], (A[:size] + B[:size] + C[:size]) / 3, atol=1e-7)
    # <think>: a and b have it, at other ids; c gets their mean. <new>: only b has it.
    think, new_row = ids_of(out)["<think>"], ids_of(out)["<new>"]
    assert (think, new_row) == (size, size + 1)
    mean = (A[ids_of(a)["<think>"]] + B[ids_of(b)["<think>"]]) / 2
    np.testing.assert_allclose(found[think], mean, atol=1e-7)
    np.testing.assert_allclose(found[new_row], B[ids_of(b)["<new>"]], atol=1e-7)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == size + 2
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.added_tokens_decoder[new_row].special
    for text in TEXTS[:2]:
        assert tokens(out, text) == tokens(a, text)
    record = json.loads((out / "merge.json").read_text())
    assert record["vocabulary"]["added"] == ["<new>"]
    filled = {
        Path(name).name: item["from"] for name, item in record["vocabulary"]["filled"].items()
    }
    assert filled["b"] == {}
    assert [value["rows"] for value in record["vocabulary"]["filled"].values()] == [1, 0, 2]
    assert [*filled["a"].values()] == [["<new>"]]
    assert sorted(filled["c"].values()) == [["<new>"], ["<think>"]]
    assert "the mean of row" in next(iter(filled["c"]))
    assert (
        AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().num_embeddings == size + 2
    )


def test_the_base_models_row_comes_before_the_others(tmp_path: Path) -> None:
    added = trained(CORPUS, 300, ["<think>"])
    base = model_of(tmp_path / "base", added, 1)
    a = model_of(tmp_path / "a", added, 2)
    model_of(tmp_path / "b", trained(CORPUS, 300), 3)
    text = "merge_method: task_arithmetic\nbase_model: base\ntokenizer_source: base\nmodels:\n"
    text += "".join(f"  - {{model: {item}, parameters: {{weight: 0.5}}}}\n" for item in "ab")
    out = merge(tmp_path, text)
    row = ids_of(base)["<think>"]
    base_row, a_row = read(base)[EMBED][row], read(a)[EMBED][row]
    # b has the base's row, so its change is 0 there.
    np.testing.assert_allclose(
        read(out)[EMBED][row], base_row + 0.5 * (a_row - base_row), atol=1e-6
    )


def test_a_row_that_a_model_lacks_may_come_before_its_row_0(tmp_path: Path) -> None:
    a = model_of(tmp_path / "a", trained(CORPUS, 280), 1)
    # b's one piece that a lacks has the id 0, and all others come after it.
    b = model_of(tmp_path / "b", moved(trained(CORPUS, 281), [*range(1, 281), 0]), 2)
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: b\nconfig_from: b"))
    mine, theirs = read(a)[EMBED], read(b)[EMBED]
    expected = [theirs[:1], (mine + theirs[1:]) / 2]
    np.testing.assert_allclose(read(out)[EMBED], np.concatenate(expected), atol=1e-7)


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a and b of one tokenizer; A and B are the same models with their ids in another order."""
    folder = tmp_path_factory.mktemp("orders")
    tokenizer = trained(CORPUS, 290)
    order = np.random.default_rng(1).permutation(290).tolist()
    for seed, name in enumerate(("base", "a", "b")):
        model_of(folder / name, tokenizer, seed)
    for seed, name in ((1, "A"), (2, "B")):
        model_of(folder / name, moved(tokenizer, order), seed)
        model = AutoModelForCausalLM.from_pretrained(folder / name.lower())
        with torch.no_grad():
            model.model.embed_tokens.weight[order] = model.model.embed_tokens.weight.clone()
        ids = AutoModelForCausalLM.from_pretrained(folder / name)
        model.config, model.generation_config = ids.config, ids.generation_config
        model.save_pretrained(folder / name)
    return folder


GIVEN = {
    "slerp": "{t: 0.3}", "nearswap": "{t: 0.01}", "ties": "{density: 0.5}",
    "dare_linear": "{density: 0.5}", "dare_ties": "{density: 0.5}", "della": "{density: 0.5}",
    "della_linear": "{density: 0.5}", "breadcrumbs": "{density: 0.5}",
    "breadcrumbs_ties": "{density: 0.5}", "sce": "{select_topk: 0.5}",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_sees_models_of_one_vocabulary(
    orders: Path, tmp_path: Path, method: str
) -> None:
    """The merge of models in another order of ids is that of the models themselves.

    To the bit when the result has the order of the base; else sums over a tensor have another order.
    """
    known = METHODS[method]
    weight = ", parameters: {weight: 0.7}" if "weight" in known.per_model else ""
    base = f"base_model: {orders}/base\n" if known.base == "required" else ""
    more = f"parameters: {GIVEN[method]}\n" if method in GIVEN else ""

    def merged(names: str, extra: str) -> Path:
        names = names[: known.max_models] if known.max_models else names
        entries = "".join(f"  - {{model: {orders}/{name}{weight}}}\n" for name in names)
        text = f"merge_method: {method}\n{base}{more}models:\n{entries}{extra}"
        return merge(tmp_path, text, f"out-{names}")

    plain = merged("ab", "")
    donor = f"tokenizer_from: {orders}/base\n" if base else ""
    aligned = merged("AB", f"tokenizer: {{source: union}}\n{donor}")
    ours, theirs = (
        item.get_vocab() for item in map(AutoTokenizer.from_pretrained, (plain, aligned))
    )
    place = [theirs[token] for token in sorted(ours, key=lambda token: ours[token])]
    for name, tensor in read(plain).items():
        found = read(aligned)[name]
        found = found[place] if name == EMBED else found
        np.testing.assert_allclose(tensor, found, atol=0 if base else 1e-7, rtol=0)
    assert verify_folder(aligned, tensors=100).tensors


def test_an_adapter_on_a_larger_vocabulary_merges_as_its_folded_model(tmp_path: Path) -> None:
    model_of(tmp_path / "a", trained(CORPUS, 290), 1, tie_word_embeddings=False)
    b = model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2, tie_word_embeddings=False)
    settings = LoraConfig(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(b), settings).save_pretrained(
        tmp_path / "adapter"
    )
    fold(b, tmp_path / "adapter", tmp_path / "folded")
    union = "tokenizer_source: union"
    wide, other = (
        read(merge(tmp_path, soup("a", name, more=union), f"out-{name}"))
        for name in ("b+adapter", "folded")
    )
    assert wide[EMBED].shape[0] == 291
    for name, tensor in wide.items():  # folded on the way it isn't rounded in between
        np.testing.assert_allclose(tensor, other[name], atol=1e-6, rtol=0)


def test_slices_of_models_with_other_vocabularies(tmp_path: Path) -> None:
    a = model_of(tmp_path / "a", trained(CORPUS, 290, ["<x>"]), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 290, ["<y>"]), 2)
    text = """
merge_method: passthrough
tokenizer_source: union
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 2]}]
"""
    out = merge(tmp_path, text)
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (3, 292)
    found, A, B = read(out), read(a), read(b)
    assert np.array_equal(found[EMBED][:291], A[EMBED])
    assert np.array_equal(found[EMBED][291], B[EMBED][290])
    up = "model.layers.{}.mlp.up_proj.weight"
    assert np.array_equal(found[up.format(2)], B[up.format(1)])


def test_padding_stays_unless_told_otherwise(tmp_path: Path) -> None:
    tokenizer = trained(CORPUS, 290)
    size = tokenizer.get_vocab_size()
    a = model_of(tmp_path / "a", tokenizer, 1, rows=size + 22)
    b = model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2, rows=size + 6)
    with pytest.raises(
        MergeError, match=rf"vocab_size: {size + 22} in .*: set tokenizer_source to"
    ):
        merge(tmp_path, soup("a", "b"))
    A, B = read(a)[EMBED], read(b)[EMBED]
    found = read(merge(tmp_path, soup("a", "b", more="tokenizer_source: a")))[EMBED]
    assert found.shape[0] == size + 22
    # The row that is <new> in b is padding in a; a's own is kept, as <new> isn't in a.
    np.testing.assert_allclose(found[size], A[size], atol=1e-7)
    np.testing.assert_allclose(found[size + 1], (A[size + 1] + B[size + 1]) / 2, atol=1e-7)
    np.testing.assert_allclose(found[size + 6 :], A[size + 6 :], atol=1e-7)
    # A union's new tokens take rows of the padding first.
    union = read(merge(tmp_path, soup("a", "b", more="tokenizer_source: union")))[EMBED]
    assert union.shape[0] == size + 22
    np.testing.assert_allclose(union[size], B[size], atol=1e-7)
    small = merge(
        tmp_path, soup("a", "b", more="tokenizer: {source: union, pad_to_multiple_of: 1}")
    )
    assert read(small)[EMBED].shape[0] == size + 1
    assert json.loads((small / "config.json").read_text())["vocab_size"] == size + 1
    wide = merge(tmp_path, soup("a", "b", more="tokenizer: {pad_to_multiple_of: 64}"))
    assert read(wide)[EMBED].shape[0] == 320
    assert not read(wide)[EMBED][size + 22 :].any()
    AutoModelForCausalLM.from_pretrained(wide)


def test_rows_of_single_tokens_come_from_where_the_config_says(tmp_path: Path) -> None:
    a = model_of(tmp_path / "a", trained(CORPUS, 300, ["<x>"]), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 300, ["<y>", "<x>"]), 2)
    text = """
tokenizer:
  source: union
  tokens:
    <x>: {source: b, force: true}
    <y>: {source: {kind: model_token, model: a, token: the}}
    <z>: {source: {kind: zero}}
    <w>: {source: {kind: model_token, model: b, token_id: 7}}
"""
    found = merge(tmp_path, soup("a", "b", more=text))
    A, B, rows, ids = read(a)[EMBED], read(b)[EMBED], read(found)[EMBED], ids_of(found)
    np.testing.assert_allclose(rows[ids["<x>"]], B[ids_of(b)["<x>"]], atol=1e-7)
    the = (A[ids_of(a)["the"]] + B[ids_of(b)["<y>"]]) / 2
    np.testing.assert_allclose(rows[ids["<y>"]], the, atol=1e-7)
    assert not rows[ids["<z>"]].any()
    np.testing.assert_allclose(rows[ids["<w>"]], B[7], atol=1e-7)
    assert tokens(found, "a <z> b") == ["a", "Ġ", "<z>", "Ġ", "b"]
    assert verify_folder(found, tensors=100).tensors


def test_a_larger_tokenizer_of_the_same_text_is_the_union(tmp_path: Path) -> None:
    """Trained on one corpus, the first merges of both are the same."""
    model_of(tmp_path / "a", trained(CORPUS, 280), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 300), 2)
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: union"))
    for text in [*TEXTS, *CORPUS]:
        assert tokens(out, text) == tokens(b, text)
    assert ids_of(out) == ids_of(b)
    with pytest.raises(
        MergeError, match=r"of the second can't be made .*, which tokenizer_from names"
    ):
        merge(tmp_path, soup("a", "b", more="tokenizer_source: union\ntokenizer_from: a"), "no")
    # By name the smaller one can be kept; what is left out is said.
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: a"))
    record = json.loads((out / "merge.json").read_text())
    (left,) = [item for key, item in record["decided"].items() if "left out" in key]
    assert len(left["tokens"]) == len(ids_of(b)) - 280


def test_tokenizers_of_other_texts_have_no_union(tmp_path: Path) -> None:
    model_of(tmp_path / "a", trained(CORPUS, 290), 1)
    model_of(tmp_path / "b", trained(["zebra zoo zulu zip zap zzz zebras"], 290), 2)
    message = r"a and .*b: no union: '.*' and \d+ more of the second can't be made by the first's tokenizer, nor '"
    with pytest.raises(MergeError, match=message):
        merge(tmp_path, soup("a", "b", more="tokenizer_source: union"))
    assert not (tmp_path / "out").exists()
    merge(tmp_path, soup("a", "b", more="tokenizer_source: a"))


def refused(folder: Path, more: str, message: str) -> None:
    with pytest.raises((MergeError, ConfigError), match=message):
        merge(folder, soup("a", "b", more=more))
    assert not (folder / "out").exists()


def unigram(pieces: dict[str, float], added: Sequence[str] = ()) -> Tokenizer:
    """A SentencePiece-like tokenizer; ids are places in the list."""
    special = [("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces.items()], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.add_tokens(list(added))
    return tokenizer


def test_unigram_pieces_have_to_have_the_same_scores(tmp_path: Path) -> None:
    pieces = {"▁the": -1.0, "▁cat": -2.0, "▁": -3.0, "c": -4.0, "a": -4.0, "t": -4.0}
    a = model_of(tmp_path / "a", unigram(pieces), 1)
    b = model_of(tmp_path / "b", unigram({"▁sat": -2.5, **pieces}, ["<new>"]), 2)
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: union"))
    # b makes all of a's pieces, so it is b's; a lacks what only b has.
    assert ids_of(out) == ids_of(b)
    assert tokens(out, "the cat sat <new>") == tokens(b, "the cat sat <new>")
    ids, there, found = ids_of(a), ids_of(b), read(out)[EMBED]
    A, B = read(a)[EMBED], read(b)[EMBED]
    for token in ("▁cat", "</s>", "t"):
        mean = (A[ids[token]] + B[there[token]]) / 2
        np.testing.assert_allclose(found[there[token]], mean, atol=1e-7)
    np.testing.assert_allclose(found[there["▁sat"]], B[there["▁sat"]], atol=1e-7)
    model_of(tmp_path / "b", unigram({**pieces, "▁cat": -2.5}), 2)
    (tmp_path / "again").mkdir()
    message = r"no union: '▁cat' of the second can't be made by the first's tokenizer, nor '▁cat'"
    with pytest.raises(MergeError, match=message):
        merge(tmp_path, soup("a", "b", more="tokenizer_source: union"), "again")


def test_what_has_no_honest_answer_is_refused(tmp_path: Path) -> None:
    a = model_of(tmp_path / "a", trained(CORPUS, 290), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2)
    union = "tokenizer_source: union"
    refused(tmp_path, "", r"tokenizers differ: '<new>' is None in .*set tokenizer_source to")
    zero = "tokenizer: {tokens: {<q>: {source: a}}}"
    refused(tmp_path, zero, r"tokenizer.tokens.<q>: .*a has no row for '<q>'")
    refused(
        tmp_path,
        zero.replace("source: a", "source: c"),
        r"tokenizer.tokens.<q>.source: expected one of",
    )
    by_id = "tokenizer: {tokens: {<q>: {source: {kind: model_token, model: a, token_id: 999}}}}"
    refused(tmp_path, by_id, r"a has no row 999 \(it has 290 rows\)")
    # b stops at <new>, which a's tokenizer doesn't have.
    change_json(b / "config.json", eos_token_id=290)
    refused(
        tmp_path,
        "tokenizer_source: a",
        r"eos_token_id: 2 in .*a, '<new>' in .*b; .*set config_from",
    )
    refused(
        tmp_path,
        "tokenizer_source: a\nconfig_from: b",
        r"b/config.json: eos_token_id is '<new>', which",
    )
    change_json(b / "config.json", eos_token_id=2)
    change_json(b / "generation_config.json", eos_token_id=[2, 290])
    refused(
        tmp_path,
        "tokenizer_source: a\nconfig_from: b",
        r"generation_config.json: eos_token_id is '<new>'",
    )
    content = json.loads((b / "tokenizer.json").read_text())
    write_json(b / "tokenizer.json", {**content, "normalizer": {"type": "NFC"}})
    refused(tmp_path, union, r"the normalizer differs: None and .*NFC.*no choice of rows")
    the = {"id": content["model"]["vocab"]["the"], "content": "the", "special": False}
    write_json(b / "tokenizer.json", {**content, "added_tokens": [*content["added_tokens"], the]})
    refused(
        tmp_path, union, r"'the' is an added token, and in .*a/tokenizer.json one that text is cut"
    )
    late = {"id": 300, "content": "<late>", "special": False}
    write_json(b / "tokenizer.json", {**content, "added_tokens": [*content["added_tokens"], late]})
    refused(tmp_path, union, r"the added token '<late>' has the id 300, and gets 291 when the file")
    (a / "tokenizer.json").rename(a / "tokenizer.model")
    refused(tmp_path, union, r"a: has no tokenizer.json, so its tokens can't be told apart")


def test_a_token_beyond_the_rows_needs_a_row(tmp_path: Path) -> None:
    tokenizer = trained(CORPUS, 290, ["<late>"])
    model_of(tmp_path / "a", tokenizer, 1, rows=290)
    b = model_of(tmp_path / "b", trained(CORPUS, 290), 2)
    refused(
        tmp_path, "tokenizer_source: a", r"no model has a row for '<late>' \(id 290\); say where"
    )
    out = merge(
        tmp_path,
        soup("a", "b", more="tokenizer: {source: a, tokens: {<late>: {source: {kind: zero}}}}"),
    )
    assert read(out)[EMBED].shape[0] == 291
    assert read(b)[EMBED].shape[0] == 290


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("tokenizer_source: union\ntokenizer: {source: a}", "says the same as tokenizer_source"),
        ("tokenizer_source: a\ntokenizer_from: b", "says the same as tokenizer_from"),
        ("tokenizer: {sourc: a}", r"tokenizer.sourc: unknown key \(did you mean 'source'"),
        ("tokenizer: {pad_to_multiple_of: 0}", "expected 1 or more, found 0"),
        ("tokenizer: {tokens: {x: {source: {kind: zeros}}}}", r"x.source.kind: expected one of zero, model_token"),
        ("tokenizer: {tokens: {x: {source: {kind: zero, model: a}}}}", "has no effect on a row of zeros"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}", "needs token or token_id, one"),
        ("tokenizer: {tokens: {x: {source: {model: a, token: y}}}}", "needs kind: model_token beside it"),
        ("tokenizer: {tokens: {x: {force: true}}}", "needs the key 'source'"),
        ("tokenizer_source: c", r"tokenizer_source: expected union, base or one of .*a, .*b, found 'c'"),
        ("tokenizer: {source: c}", r"tokenizer: expected union, base or one of .*a, .*b, found 'c'"),
        ("tokenizer_source: base", "base, but no base_model is given"),
        ("chat_template: llama3", "the template llama3 isn't part of dualign; give its jinja text"),
        ("chat_template: chatmi", "expected a jinja template, or auto or chatml, found 'chatmi'"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_meant_is_refused(
    tmp_path: Path, more: str, message: str
) -> None:
    (tmp_path / "merge.yml").write_text(soup("a", "b", more=more))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "merge.yml")


def test_templates_by_name(tmp_path: Path) -> None:
    tokenizer = trained(CORPUS, 290)
    for seed, name in enumerate("abc"):
        model_of(tmp_path / name, tokenizer, seed)
    (tmp_path / "c" / "chat_template.jinja").write_text("{{ other }}")
    out = merge(tmp_path, soup("c", "a", "b", more="chat_template: auto"))
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(MergeError, match=r"as many models have the template of .*a as that of .*c"):
        merge(tmp_path, soup("a", "c", more="chat_template: auto"))
    out = merge(tmp_path, soup("a", "c", more="chat_template: chatml"))
    said = AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert said == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("source", ["", "tokenizer_source: union"])
def test_all_named_templates_of_a_tokenizer_are_kept(tmp_path: Path, source: str) -> None:
    named = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    for seed, name in enumerate("ab"):
        model_of(tmp_path / name, trained(CORPUS, 290), seed)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        tokenizer.chat_template = named
        tokenizer.save_pretrained(tmp_path / name)
    out = merge(tmp_path, soup("a", "b", more=source))
    assert AutoTokenizer.from_pretrained(out).chat_template == named
    out = merge(tmp_path, soup("a", "b", more="chat_template: chatml"))
    assert isinstance(AutoTokenizer.from_pretrained(out).chat_template, str)
    (tmp_path / "b" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ other }}")
    with pytest.raises(MergeError, match="additional_chat_templates"):
        merge(tmp_path, soup("a", "b"))


def test_a_merge_inside_of_another_keeps_its_vocabulary(tmp_path: Path) -> None:
    model_of(tmp_path / "a", trained(CORPUS, 290), 1)
    model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2)
    text = (
        "name: inner\n" + soup("a", "b", more="tokenizer_source: union\n---") + soup("inner", "a")
    )
    with pytest.raises(MergeError, match="inner: its models have different vocabularies"):
        merge(tmp_path, text)


def test_a_tokenizer_that_was_changed_since_is_found(tmp_path: Path) -> None:
    """It says where the rows went, so it counts as an input."""
    model_of(tmp_path / "a", trained(CORPUS, 290), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2)
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: union"))
    before = fingerprint(prepare(load(tmp_path / "merge.yml"), seed=0), 0)
    content = json.loads((b / "tokenizer.json").read_text())
    content["added_tokens"][-1]["content"] = "<other>"
    write_json(b / "tokenizer.json", content)
    assert fingerprint(prepare(load(tmp_path / "merge.yml"), seed=0), 0) != before
    with pytest.raises(MergeError, match=r"b/tokenizer.json: isn't the file that was merged"):
        verify_folder(out)


def test_slow_files_of_older_tokenizers_learn_the_new_tokens(tmp_path: Path) -> None:
    a = model_of(tmp_path / "a", trained(CORPUS, 290), 1)
    model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2)
    change_json(
        a / "tokenizer_config.json",
        added_tokens_decoder={"0": {"content": "<pad>", "special": True}},
    )
    write_json(a / "added_tokens.json", {})
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: union"))
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"]["290"]["content"] == "<new>"
    assert json.loads((out / "added_tokens.json").read_text()) == {"<new>": 290}
    assert ids_of(out)["<new>"] == 290


def test_a_dry_run_shows_what_is_decided_and_what_would_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_of(tmp_path / "a", trained(CORPUS, 290), 1)
    b = model_of(tmp_path / "b", trained(CORPUS, 290, ["<new>"]), 2, max_position_embeddings=32)
    (b / "chat_template.jinja").write_text("{{ other }}")
    config = tmp_path / "merge.yml"
    config.write_text(soup("a", "b"))
    assert main(["merge", str(config), "--dry-run"]) == 2
    asked = capsys.readouterr().err
    assert "5 things keep these models from being merged" in asked
    for part in ("vocab_size: 290 in", "set tokenizer_source to", "set config_from to", "tokenizers differ: '<new>'",
                 "max_position_embeddings: 64 in", "chat_template: '{{ messages }}' in"):  # fmt: skip
        assert part in asked
    config.write_text(
        soup("a", "b", more="tokenizer_source: union\ntokenizer_from: a\nconfig_from: a")
    )
    assert main(["merge", str(config), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "decided   max_position_embeddings: from" in shown
    assert "decided   vocabulary: from" in shown and "now 291 tokens in 291 rows" in shown
    assert "'291 tokens in 291 rows'" in shown
    assert not (tmp_path / "out").exists()
