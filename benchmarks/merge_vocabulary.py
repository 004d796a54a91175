"""Vocabularies brought together, against mergekit: the rows of each token, token by token.

    python -m benchmarks.merge_vocabulary WORK

Tiny models with the real SmolLM2 tokenizer: base, a with `<think>`, b with `<tool>` and `<think>`.
Both read the same YAML. Prints, for each case, how far the rows of the same token are apart at
most.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.merge import FAIR, install_mergekit
from dualign.checkpoints.checkpoint import Checkpoint, read_whole
from dualign.checkpoints.embedded import embedded_model
from dualign.checkpoints.header import TensorSpec, write_header
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into

EMBED = "model.embed_tokens.weight"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24), "input_layernorm": (16,), "post_attention_layernorm": (16,),
}  # fmt: skip
MODELS = {"base": [], "a": ["<think>"], "b": ["<tool>", "<think>"]}
LINEAR = "merge_method: linear\nmodels:\n" + "".join(
    f"  - {{model: ./{name}, parameters: {{weight: {weight}}}}}\n"
    for name, weight in (("a", 0.6), ("b", 0.4))
)
TASK = "merge_method: task_arithmetic\nbase_model: ./base\n" + LINEAR.partition("\n")[2]
TOKENS = """tokenizer:
  source: union
  tokens:
    <think>: {source: ./b, force: true}
    <tool>: {source: {kind: model_token, model: ./a, token: the}}
    <new>: {source: {kind: zero}}
"""
CASES = {
    "linear, union": LINEAR + "base_model: ./a\ntokenizer_source: union\n",
    "linear, one model's": LINEAR + "base_model: ./a\ntokenizer_source: ./b\n",
    "task_arithmetic, union": TASK + "tokenizer_source: union\n",
    "task_arithmetic, base": TASK + "tokenizer_source: base\n",
    "linear, rows by token": LINEAR + "base_model: ./a\n" + TOKENS,
}


def write_model(folder: Path, seed: int, added: list[str]) -> None:
    """A tiny model in float32 with the real tokenizer and more tokens."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = 49152 + len(added)
    shapes = {EMBED: (rows, 16), "model.norm.weight": (16,)}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in LAYER.items()}
    draw = np.random.default_rng(seed)
    values = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    header = write_header([TensorSpec(name, shape, "F32") for name, shape in shapes.items()])
    data = b"".join(value.tobytes() for value in values.values())
    (folder / "model.safetensors").write_bytes(header + data)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": rows}))
    tokenizer = embedded_model()
    shutil.copy(tokenizer / "tokenizer_config.json", folder)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"] += [
        {"id": 49152 + place, "content": token, **flags} for place, token in enumerate(added)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # which every release knows
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    """Merge with both, and compare the rows of the tokens of both."""
    work = Path(sys.argv[1]).absolute()
    theirs = install_mergekit(work / "mergekit")
    place = work / "vocabulary"
    for seed, (name, added) in enumerate(MODELS.items()):
        write_model(place / name, seed, added)
    os.chdir(place)
    for name, text in CASES.items():
        file = Path("merge.yml")
        file.write_text(text)
        outs = [Path("ours"), Path("theirs")]
        for out in outs:
            shutil.rmtree(out, ignore_errors=True)
        merge_into(load(file), outs[0])
        command = [str(theirs.parent / "mergekit-yaml"), str(file), "theirs", *FAIR]
        command = [item for item in command if "copy-tokenizer" not in item]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        summary = compared(*outs) if done.returncode == 0 else done.stderr.splitlines()[-1]
        print(f"{name}: {summary}", flush=True)


def compared(ours: Path, theirs: Path) -> str:
    """The tokens of both, and how far their rows are apart."""
    vocabularies = [_ids(out) for out in (ours, theirs)]
    rows = [read_whole(Checkpoint(out), EMBED) for out in (ours, theirs)]
    tokens = sorted(set(vocabularies[0]) & set(vocabularies[1]))
    apart = [
        np.abs(rows[0][vocabularies[0][token]] - rows[1][vocabularies[1][token]]).max()
        for token in tokens
    ]
    only = [sorted(set(vocabularies[0]) ^ set(vocabularies[1]))][0]
    far = [token for token, item in zip(tokens, apart, strict=True) if item > 1e-6]
    return (
        f"{len(tokens)} tokens in both, {only[:5]} in one, rows {[len(row) for row in rows]}, "
        f"at most {max(apart):.1e} apart, {len(far)} by more than 1e-6 {far[:5]}"
    )


def _ids(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)


if __name__ == "__main__":
    main()
