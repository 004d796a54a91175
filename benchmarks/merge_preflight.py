"""Seconds from the command line to a checked plan, for 3 x 500 MB: headers and JSON alone.

    python -m benchmarks.merge_preflight FOLDER

The weights are holes in files (nothing reads them before a merge writes), the tokenizers are real:
SmolLM2's, once the same in all three, once with tokens added in two of them.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from dualign.checkpoints.embedded import embedded_model
from dualign.checkpoints.header import TensorSpec, write_header

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
    "intermediate_size": 2816, "num_hidden_layers": 18, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (256, 1024), "self_attn.v_proj": (256, 1024),
    "self_attn.o_proj": (1024, 1024), "mlp.gate_proj": (2816, 1024), "mlp.up_proj": (2816, 1024),
    "mlp.down_proj": (1024, 2816), "input_layernorm": (1024,), "post_attention_layernorm": (1024,),
}  # fmt: skip
RUN = """
import sys, time
clock = time.perf_counter()
from pathlib import Path
from dualign.merging.mergekit.load import load
from dualign.merging.merge import prepare
imported = time.perf_counter()
prepare(load(Path(sys.argv[1])), seed=0)
print(imported - clock, time.perf_counter() - imported, time.process_time())
"""


def write_model(folder: Path, tokenizer: Path, added: list[str]) -> None:
    """A model whose weights are holes."""
    folder.mkdir(parents=True)
    rows = 49152 + len(added)
    shapes = {"model.embed_tokens.weight": (rows, 1024), "model.norm.weight": (1024,)}
    for layer in range(18):
        shapes |= {f"model.layers.{layer}.{name}.weight": item for name, item in LAYER.items()}
    planned = [TensorSpec(name, shape, "BF16") for name, shape in shapes.items()]
    header = write_header(planned)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(item.nbytes for item in planned))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": rows}))
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tokenizer / name, folder)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"] += [
        {"id": 49152 + place, "content": token, **flags} for place, token in enumerate(added)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))


def main(root: Path) -> None:
    """Write the models, and time three runs of each kind."""
    tokenizer = embedded_model()
    for name, added in (("a", []), ("b", []), ("c", []), ("d", ["<think>"]), ("e", ["<x>", "<y>"])):
        shutil.rmtree(root / name, ignore_errors=True)
        write_model(root / name, tokenizer, added)
    for label, names, more in (
        ("one tokenizer", "abc", ""),
        ("three tokenizers, union", "ade", "tokenizer_source: union\n"),
    ):
        models = "".join(
            f"  - {{model: {root / item}, parameters: {{weight: 1}}}}\n" for item in names
        )
        file = root / "merge.yml"
        file.write_text(f"merge_method: linear\nmodels:\n{models}{more}")
        for _ in range(3):
            clock = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", RUN, str(file)], check=True, capture_output=True, text=True
            )
            wall = time.perf_counter() - clock
            imports, checks, cpu = map(float, done.stdout.split())
            print(
                f"{label}: {wall:.2f} s, of it {checks:.2f} checks, {imports:.2f} imports; CPU {cpu:.2f}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
