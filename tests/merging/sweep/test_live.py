"""A live model's weights after a merge are those of the written merge, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dualign.checkpoints.shards import write_weights
from dualign.errors import MergeError
from dualign.merging.merge import PreparedMerge, prepare, write_beside
from dualign.merging.sweep.live import LiveModel
from dualign.merging.sweep.points import merge_at
from tests.merging.conftest import MakeModel

METHODS: dict[str, Any] = {
    "linear": {"method": "linear", "weights": [0.9, 0.1]},
    "slerp": {"method": "slerp", "base": True, "parameters": {"t": 0.3}},
    "ties": {"method": "ties", "base": True, "weights": [0.8], "parameters": {"density": 0.4}},
    "dare_ties": {"method": "dare_ties", "base": True, "weights": [0.8], "parameters": {"density": 0.5}},
}  # fmt: skip


def prepared(a: Path, b: Path, how: dict[str, Any], **settings: Any) -> PreparedMerge:
    names = [str(b)] if how.get("base") else [str(a), str(b)]
    weights = how.get("weights", [None] * len(names))
    models = [
        {"model": name} | ({} if weight is None else {"weight": weight})
        for name, weight in zip(names, weights, strict=True)
    ]
    merge = {"method": how["method"], "models": models, **settings}
    merge |= {"parameters": how["parameters"]} if "parameters" in how else {}
    merge |= {"base_model": str(a)} if how.get("base") else {}
    return prepare(merge_at(merge, {}, "s"), seed=7)


def write(ready: PreparedMerge, folder: Path) -> Path:
    folder.mkdir()
    write_weights(ready.weights, folder, dtype=ready.merge.dtype)
    write_beside(ready, folder)
    return folder


def same(live: LiveModel, folder: Path, dtype: torch.dtype) -> bool:
    """Parameters, and what is made of them, are those of the folder loaded the ordinary way."""
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    there, wanted = live.model.state_dict(), written.state_dict()
    assert there.keys() == wanted.keys()
    assert live.model.generation_config.to_dict() == written.generation_config.to_dict()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (live.model, written)]
    return torch.equal(*logits) and all(torch.equal(there[name], wanted[name]) for name in there)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_live_weights_are_those_of_the_written_merge(
    method: str,
    tied: bool,
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"dtype": torch.bfloat16, "tie_word_embeddings": tied}
    a, b = make_model("a", seed=1, **options), make_model("b", seed=2, **options)
    ready = prepared(a, b, METHODS[method])
    folder = write(ready, tmp_path / "written")
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        live = LiveModel(folder, dtype=name)
        live.apply(ready.weights, dtype=ready.merge.dtype)
        assert same(live, folder, kind)
        embedding = live.model.get_input_embeddings().weight
        head = live.model.get_output_embeddings().weight
        assert (embedding.data_ptr() == head.data_ptr()) is tied


def test_one_merge_after_the_other_leaves_nothing_of_the_first(
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    first, second = (
        prepared(a, b, {"method": "linear", "weights": w}) for w in ([0.9, 0.1], [0.2, 0.8])
    )
    folder = write(second, tmp_path / "second")
    live = LiveModel(folder, dtype="float32")
    live.apply(first.weights)
    assert not same(live, folder, torch.float32)
    live.apply(second.weights)
    assert same(live, folder, torch.float32)


def test_the_written_type_rounds_the_live_numbers_too(
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    ready = prepared(a, b, METHODS["linear"], dtype="bfloat16")
    folder = write(ready, tmp_path / "written")
    live = LiveModel(folder, dtype="float32")
    live.apply(ready.weights, dtype="bfloat16")
    assert same(live, folder, torch.float32)
    weight = live.model.get_input_embeddings().weight
    assert torch.equal(weight, weight.bfloat16().float())


def test_a_number_that_does_not_fit_is_told_with_its_tensor(
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    ready = prepared(
        a, b, {"method": "linear", "weights": [1e39, -1e39]}, dtype="float16", normalize=False
    )
    fine = prepared(a, b, METHODS["linear"])
    live = LiveModel(write(fine, tmp_path / "written"), dtype="float32")
    with pytest.raises(MergeError, match=r"weight would hold .* as float16; choose a wider dtype"):
        live.apply(ready.weights, dtype="float16")


def test_weights_of_another_shape_are_refused(
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    live = LiveModel(write(prepared(a, b, METHODS["linear"]), tmp_path / "w"), dtype="float32")
    for name, settings in (("wide", {"intermediate_size": 32}), ("deep", {"num_hidden_layers": 3})):
        other = make_model(name, seed=3, **settings)
        ready = prepare(merge_at({"models": [{"model": str(other)}]}, {}, "s"), seed=0)
        with pytest.raises(MergeError, match="the model in memory has"):
            live.apply(ready.weights)
    shallow = make_model("shallow", seed=3, num_hidden_layers=1)
    ready = prepare(merge_at({"models": [{"model": str(shallow)}]}, {}, "s"), seed=0)
    with pytest.raises(MergeError, match=r"has a parameter model\.layers\.1"):
        live.apply(ready.weights)
