"""Model folders that can't be read as they should are refused, by file and tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dualign.checkpoints.checkpoint import Checkpoint
from dualign.errors import CheckpointError, MergeError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def folder(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def sharded(path: Path, weight_map: dict[str, str]) -> Path:
    folder(path, {}, tie_word_embeddings=True)
    (path / "model.safetensors").unlink()
    save_file({EMBEDDING: torch.ones(2, 2)}, path / "one.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_a_tied_head_that_is_stored_counts_once(tmp_path: Path) -> None:
    weight = torch.ones(4, 2)
    tensors = {EMBEDDING: weight, HEAD: weight.clone()}
    assert list(Checkpoint(folder(tmp_path, tensors, tie_word_embeddings=True)).entries) == [
        EMBEDDING
    ]
    untied = Checkpoint(folder(tmp_path, tensors, tie_word_embeddings=False))
    assert sorted(untied.entries) == [HEAD, EMBEDDING]


def test_a_head_that_is_tied_in_name_only_is_refused(tmp_path: Path) -> None:
    tensors = {EMBEDDING: torch.ones(4, 2), HEAD: torch.zeros(4, 2)}
    with pytest.raises(MergeError, match=f"{HEAD} and {EMBEDDING} differ"):
        Checkpoint(folder(tmp_path, tensors, tie_word_embeddings=True))


def test_an_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    config = {"tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(CheckpointError, match=f"there is no {HEAD}"):
        Checkpoint(folder(tmp_path, {EMBEDDING: torch.ones(4, 2)}, **config))


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    tensors = {"model.layer.weight": torch.ones(4, dtype=torch.uint8)}
    with pytest.raises(MergeError, match=r"model.layer.weight is stored as U8"):
        Checkpoint(folder(tmp_path, tensors))
    with pytest.raises(MergeError, match="a quantized checkpoint"):
        Checkpoint(folder(tmp_path, tensors, quantization_config={}))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, {EMBEDDING: torch.ones(4, 2)})
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a whole safetensors file"):
        Checkpoint(path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, {})
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        Checkpoint(path)
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not JSON"):
        Checkpoint(path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "expected a weight_map with tensors"),
        ({EMBEDDING: "../one.safetensors"}, "isn't a file of this folder"),
        ({EMBEDDING: "two.safetensors"}, "two.safetensors: no such file"),
        ({EMBEDDING: "one.safetensors", "b": "one.safetensors"}, "the index says 'b' is here"),
        ({"b": "one.safetensors"}, f"'{EMBEDDING}' isn't in .*index.json"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    tmp_path: Path, weight_map: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(sharded(tmp_path, weight_map))


def test_a_whole_file_beside_shards_is_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path, {EMBEDDING: "one.safetensors"})
    save_file({EMBEDDING: torch.ones(2, 2)}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="remove the one that is stale"):
        Checkpoint(path)
