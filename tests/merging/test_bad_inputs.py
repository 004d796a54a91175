"""Each way an input can be wrong: its message, and that nothing is left behind."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dualign.errors import DualignError
from dualign.merging.mergefile import load
from dualign.merging.output import merge_into

from .folders import TOKENS, change_json, shard, tensors, write_file, write_json, write_model

UP = "model.layers.0.mlp.up_proj.weight"
TEXT = """
merge_method: linear
parameters: {weight: 1}
models: [{model: a}, {model: b}]
"""


def without(name: str) -> dict[str, np.ndarray]:
    return {key: one for key, one in tensors(2).items() if key != name}


def reshaped(b: Path) -> None:
    write_model(b, values={**tensors(2), UP: np.zeros((8, 16), np.float32)})


def spoiled(value: float) -> Callable[[Path], None]:
    def spoil(b: Path) -> None:
        values = tensors(2)
        values[UP][3, 4] = value
        data = b"".join(one.tobytes() for one in values.values())
        whole = (b / "model.safetensors").read_bytes()
        (b / "model.safetensors").write_bytes(whole[: -len(data)] + data)

    return spoil


def cut(b: Path) -> None:
    whole = (b / "model.safetensors").read_bytes()
    (b / "model.safetensors").write_bytes(whole[:-5])


def header(text: bytes, data: bytes = b"") -> Callable[[Path], None]:
    return lambda b: (
        (b / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data) and None
    )  # type: ignore[func-returns-value]


def linked_out(b: Path) -> None:
    (b / "model.safetensors").rename(b.parent / "elsewhere.safetensors")
    (b / "model.safetensors").symlink_to(b.parent / "elsewhere.safetensors")


def linked_config(b: Path) -> None:
    (b / "config.json").rename(b.parent / "config.json")
    (b / "config.json").symlink_to("../config.json")


def index(weight_map: object) -> Callable[[Path], None]:
    def write(b: Path) -> None:
        shard(b, 2)
        write_json(b / "model.safetensors.index.json", {"weight_map": weight_map})

    return write


def lost_shard(b: Path) -> None:
    shard(b, 2)
    (b / "model-00002-of-00002.safetensors").unlink()


def swapped_index(b: Path) -> None:
    shard(b, 2)
    names = sorted(tensors(2))
    files = [f"model-0000{1 + (place + 1) % 2}-of-00002.safetensors" for place in range(len(names))]
    write_json(
        b / "model.safetensors.index.json", {"weight_map": dict(zip(names, files, strict=True))}
    )


def tied_in_name(b: Path) -> None:
    write_model(b, values={**tensors(2), "lm_head.weight": np.ones((12, 8), np.float32)})


def rewrite(**settings: object) -> Callable[[Path], None]:
    return lambda b: write_model(b, 2, **settings) and None  # type: ignore[arg-type,func-returns-value]


def merges_vocab(b: Path) -> None:
    write_json(b / "tokenizer.json", {"model": {"vocab": TOKENS, "merges": ["a b"]}})


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda b: b.rename(b.parent / "gone"), "'b' is neither a folder here nor"),
    "no config": (lambda b: (b / "config.json").unlink(), r"b/config.json: no such file"),
    "config not JSON": (lambda b: (b / "config.json").write_text("{"), "config.json: not JSON"),
    "config a list": (lambda b: (b / "config.json").write_text("[]"), "expected a JSON object, found list"),
    "config too deep": (lambda b: (b / "config.json").write_text("[" * 100000), "config.json: not JSON"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), "expected model.safetensors or"),
    "pickle": (lambda b: (b / "model.safetensors").rename(b / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
    "cut short": (cut, r"b/model.safetensors: not a whole safetensors file \(its tensors end at byte"),
    "empty file": (lambda b: (b / "model.safetensors").write_bytes(b""), "0 bytes can't hold a header"),
    "huge header": (lambda b: (b / "model.safetensors").write_bytes(b"\xff" * 64), "can't hold a header of"),
    "header not JSON": (header(b"{oops"), "its header isn't JSON"),
    "header a list": (header(b"[]"), "its header is list"),
    "header twice": (header(b'{"a":1,"a":2}'), "'a' is given twice"),
    "header too deep": (header(b"[" * 50000), "its header isn't JSON"),
    "no offsets": (header(b'{"w":{"dtype":"F32","shape":[1]}}', b"0000"), "the entry of w isn't"),
    "negative shape": (header(b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"0000"), "the entry of w isn't"),
    "unknown type": (header(b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', b"0000"), "w has the unknown type 'Q9'"),
    "wrong size": (header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"0000"), r"w is F32 \[2\] in 4 bytes"),
    "overlap": (header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000"), "starts at byte 0, expected 4"),
    "gap": (header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"00000000"), "w starts at byte 4, expected 0"),
    "quantised": (header(b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"0000"), "w is stored as U8"),
    "quantised config": (rewrite(quantization_config={"bits": 4}), "b: a quantised checkpoint"),
    "tensor missing": (lambda b: write_file(b / "model.safetensors", without(UP)), f"only .*a has the tensor {UP}"),
    "tensor added": (lambda b: write_file(b / "model.safetensors", {**tensors(2), "x": np.ones(1, np.float32)}), "only .*b has the tensor x"),
    "other shape": (reshaped, rf"{UP} is \(16, 8\) and \(8, 16\)"),
    "other type": (rewrite(dtype="BF16"), "set dtype to float32, bfloat16 or float16"),
    "NaN": (spoiled(float("nan")), rf"b/model.safetensors: {UP} holds NaN or inf.* nan at \[3, 4\]"),
    "Inf": (spoiled(float("-inf")), rf"{UP} holds NaN or inf.* -inf at \[3, 4\]"),
    "link out": (linked_out, "model.safetensors: a link to .*outside of the model folder"),
    "config linked out": (linked_config, "config.json: a link to .*outside of the model folder"),
    "index out": (index({UP: "../x.safetensors"}), "'../x.safetensors' isn't a file of this folder"),
    "index absolute": (index({UP: "/etc/passwd"}), "'/etc/passwd' isn't a file of this folder"),
    "index not names": (index({UP: 3}), "3 isn't a file of this folder"),
    "index empty": (index({}), "expected a weight_map with tensors"),
    "index a list": (index([]), "expected a weight_map with tensors"),
    "shard missing": (lost_shard, "model-00002-of-00002.safetensors: no such file"),
    "index stale": (swapped_index, "isn't in the index of its folder"),
    "file beside index": (lambda b: write_json(b / "model.safetensors.index.json", {}), "remove the one that is stale"),
    "tied in name only": (tied_in_name, "lm_head.weight and model.embed_tokens.weight differ"),
    "untied without head": (rewrite(tie_word_embeddings=False), "there is no lm_head.weight"),
    "other architecture": (rewrite(architectures=["MistralForCausalLM"]), "architectures: .* can't be merged"),
    "other rope": (rewrite(rope_theta=5e5), r"rope_parameters: .*10000.0.*500000.0.*set config_from"),
    "YaRN": (rewrite(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_parameters: .*yarn.*set config_from"),
    "other no_rope_layers": (rewrite(no_rope_layers=[1, 1, 1, 0]), "no_rope_layers: .* can't be merged"),
    "other context": (rewrite(max_position_embeddings=32), "max_position_embeddings: 64 .* 32 .*set config_from"),
    "other end id": (rewrite(eos_token_id=3), "eos_token_id: 2 in .*a, 3 in .*b.*set config_from"),
    "other vocabulary": (rewrite(tokenizer={**TOKENS, "b": 5}), "tokenizers differ: 'b' is 4 in .*a and 5 in .*b"),
    "other merges": (merges_vocab, "the list of merges"),
    "other end token": (lambda b: change_json(b / "tokenizer_config.json", eos_token="a"), "eos_token: '</s>' in .*'a' in"),
    "other template": (rewrite(template="other"), "chat_template: .*set config_from or tokenizer_from"),
    "no tokenizer": (lambda b: [(b / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")], "tokenizer: True in .*False in"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_refused_by_file_and_nothing_is_left(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    harm, message = CASES[case]
    write_model(tmp_path / "a", 1)
    harm(write_model(tmp_path / "b", 2))
    (tmp_path / "merge.yml").write_text(TEXT)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DualignError, match=message):
        merge_into(load(tmp_path / "merge.yml"), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_without_room_is_seen_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    write_model(tmp_path / "a", 1)
    write_model(tmp_path / "b", 2)
    (tmp_path / "merge.yml").write_text(TEXT)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DualignError, match=r"0.00 GB free; make room first"):
        merge_into(load(tmp_path / "merge.yml"), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_links_within_the_hub_cache_are_followed(tmp_path: Path) -> None:
    home = tmp_path / "models--org--name"
    snapshot = write_model(home / "snapshots" / "abc", 1)
    (home / "blobs").mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(home / "blobs" / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    (tmp_path / "merge.yml").write_text(
        f"merge_method: passthrough\nmodels: [{{model: {snapshot}}}]\n"
    )
    merge_into(load(tmp_path / "merge.yml"), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
