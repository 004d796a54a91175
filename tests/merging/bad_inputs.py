"""Each way an input can be wrong, and what is said about it. docs/merging-errors.md is made of this:

python -m tests.merging.bad_inputs > docs/merging-errors.md
"""

import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dualign.errors import DualignError
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
from tests.checkpoints.folders import (
    TOKENS,
    change_json,
    shard,
    tensors,
    write_file,
    write_json,
    write_model,
)

UP = "model.layers.0.mlp.up_proj.weight"
TEXT = """
merge_method: linear
parameters: {weight: 1}
models: [{model: a}, {model: b}]
"""


def without(name: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in tensors(2).items() if key != name}


def reshaped(b: Path) -> None:
    write_model(b, values={**tensors(2), UP: np.zeros((8, 16), np.float32)})


def spoiled(value: float) -> Callable[[Path], None]:
    def spoil(b: Path) -> None:
        values = tensors(2)
        values[UP][3, 4] = value
        data = b"".join(array.tobytes() for array in values.values())
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


def shard_linked_out(b: Path) -> None:
    shard(b, 2)
    first = b / "model-00001-of-00002.safetensors"
    first.rename(b.parent / "elsewhere.safetensors")
    first.symlink_to(b.parent / "elsewhere.safetensors")


def linked_out_of(name: str) -> Callable[[Path], None]:
    def link(b: Path) -> None:
        (b / name).rename(b.parent / name)
        (b / name).symlink_to(f"../{name}")

    return link


def shard_cut(b: Path) -> None:
    shard(b, 2)
    file = b / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def untied(b: Path) -> None:
    head = {"lm_head.weight": np.ones((12, 8), np.float32)}
    write_model(b, values={**tensors(2), **head}, tie_word_embeddings=False)


def more_rows(b: Path) -> None:
    values = tensors(2)
    rows = values["model.embed_tokens.weight"]
    values["model.embed_tokens.weight"] = np.concatenate([rows, rows[:4]])
    write_model(b, values=values, vocab_size=16)


def other_flags(b: Path) -> None:
    for folder, strips in ((b.parent / "a", False), (b, True)):
        pad = {"id": 0, "content": "<pad>", "special": True, "lstrip": strips}
        change_json(folder / "tokenizer.json", added_tokens=[pad])


def two_faults(b: Path) -> None:
    write_model(b, 2, rope_theta=5e5, template="other")


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
    "quantized": (header(b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"0000"), "w is stored as U8"),
    "quantized config": (rewrite(quantization_config={"bits": 4}), "b: a quantized checkpoint"),
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
    "index stale": (swapped_index, "isn't in model.safetensors.index.json"),
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
    "tokenizer linked out": (linked_out_of("tokenizer.json"), "tokenizer.json: a link to .*outside of the model folder"),
    "template linked out": (linked_out_of("chat_template.jinja"), "chat_template.jinja: a link to .*outside"),
    "shard linked out": (shard_linked_out, "model-00001-of-00002.safetensors: a link to .*outside"),
    "shard cut short": (shard_cut, r"model-00002-of-00002.safetensors: not a whole safetensors file"),
    "index not JSON": (lambda b: [shard(b, 2), (b / "model.safetensors.index.json").write_text("{")], "index.json: not JSON"),
    "untied": (untied, "tie_word_embeddings: True in .*False in .*; tied and untied models"),
    "more rows": (more_rows, "vocab_size: 12 in .*16 in .*set tokenizer_source to the model"),
    "rows and config disagree": (rewrite(vocab_size=13), "config.json says vocab_size: 13, and model.embed_tokens.weight has 12 rows"),
    "other end id for generation": (lambda b: [write_json(item / "generation_config.json", {"eos_token_id": [2, place]}) for place, item in enumerate((b.parent / "a", b))], r"generation_config.eos_token_id: \[2, 0\] in .*\[2, 1\] in .*set config_from"),
    "other normalizer": (lambda b: change_json(b / "tokenizer.json", normalizer={"type": "NFC"}), "the normalizer' is None in"),
    "other post-processor": (lambda b: change_json(b / "tokenizer.json", post_processor={"type": "ByteLevel"}), "post_processor: None in .*set config_from or tokenizer_from"),
    "other flags of an added token": (other_flags, r"added token '<pad>': \['special'\] in .*a, \['special', 'lstrip'\] in .*b; .*set config_from or tokenizer_from"),
    "tokenizer not JSON": (lambda b: (b / "tokenizer.json").write_text("]"), "tokenizer.json: not JSON"),
    "tokenizer without a model": (lambda b: write_json(b / "tokenizer.json", {}), "tokenizer.json: isn't a tokenizer that can be read"),
    "two things at once": (two_faults, "(?s)2 things keep these models.*rope_parameters.*chat_template: "),
}  # fmt: skip


def attempt(case: str, folder: Path) -> None:
    """Merge `a`, which is well, with `b`, which isn't."""
    write_model(folder / "a", 1)
    CASES[case][0](write_model(folder / "b", 2))
    (folder / "merge.yml").write_text(TEXT)
    merge_into(load(folder / "merge.yml"), folder / "out")


def said(case: str, folder: Path) -> str:
    """The message, without what differs from machine to machine."""
    try:
        attempt(case, folder)
    except DualignError as error:
        text = "<br>".join(str(error).split("\n")).replace(f"{folder}/", "").replace("|", "\\|")
        text = re.sub(r"(n't JSON|not JSON): .*?(?=\); fetch|$)", r"\1: ...", text)
        return re.sub(r"\([A-Z]\w+Error\)", "(...)", text)
    raise AssertionError(f"{case} was merged")


def page() -> str:
    """docs/merging-errors.md."""
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(f"| {case} | {said(case, Path(folder))} |")
    return PAGE + "\n".join(rows) + "\n"


PAGE = f"""# What a merge refuses

Model a is well, b is planted; `dualign merge` ends with exit code 2 and leaves nothing behind. Made by
`python -m tests.merging.bad_inputs`, and checked by the tests: {len(CASES)} kinds. What a config can have wrong
(unknown keys, weights of 0, methods without their base, ...) is in `tests/merging/mergekit/test_load.py`,
vocabularies that can't be brought together in `test_vocabulary.py`, pickles in `test_pickles.py`, a full disk
and a value too large for the written type in `test_merge.py` and `test_bad_inputs.py`.

| in b | message |
|---|---|
"""

if __name__ == "__main__":
    print(page(), end="")
