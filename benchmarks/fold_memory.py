"""How much memory folding a LoRA adapter of a 3B model's shapes takes, and how near the result is to float64.

    python -m benchmarks.fold_memory WORK [--layers 4] [--nf4]

SmolLM3's widths (hidden 2048, MLP 11008, vocabulary 128256, tied), bfloat16, fewer layers; LoRA r
16 on every linear layer and on the embedding. Memory is RssAnon above the interpreter with its
imports, sampled every 10 ms.
"""

import argparse
import json
import shutil
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HIDDEN, MLP, HEADS, KV, VOCABULARY, RANK = 2048, 11008, 2048, 512, 128256, 16
LINEAR = {
    "self_attn.q_proj": (HEADS, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}


def main() -> None:
    """Make, fold, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--nf4", action="store_true", help="into what NF4 makes of the base")
    args = parser.parse_args()
    base, adapter, out = (args.work / name for name in ("base", "adapter", "out"))
    make(base, adapter, args.layers)
    shutil.rmtree(out, ignore_errors=True)
    from dualign.checkpoints.adapters import fold

    idle = anonymous_mb()
    with Watch() as watch:
        start, cpu = time.perf_counter(), time.process_time()
        fold(Path(f"nf4:{base}") if args.nf4 else base, adapter, out)
        took, spent = time.perf_counter() - start, time.process_time() - cpu
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB, {args.layers} layers: {took:.1f} s, {spent:.1f} CPU s")
    print(f"peak RssAnon {watch.peak:.0f} MB, {watch.peak - idle:.0f} MB above idle")
    if not args.nf4:
        compare(base, adapter, out, args.layers)


def make(base: Path, adapter: Path, layers: int) -> None:
    """The two folders, once."""
    if (adapter / "adapter_config.json").is_file():
        return
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int, scale: float, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    base.mkdir(parents=True, exist_ok=True)
    adapter.mkdir(parents=True, exist_ok=True)
    paths = {
        f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in LINEAR.items()
    }
    tensors = {f"{path}.weight": noise(*shape, scale=0.02) for path, shape in paths.items()}
    tensors["model.embed_tokens.weight"] = noise(VOCABULARY, HIDDEN, scale=0.02)
    tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
    }
    config |= {"hidden_size": HIDDEN, "intermediate_size": MLP, "vocab_size": VOCABULARY}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": layers}
    (base / "config.json").write_text(json.dumps(config))
    factors = {}
    for path, (outputs, inputs) in paths.items():
        factors[f"{path}.lora_A.weight"] = noise(RANK, inputs, scale=0.02, dtype=torch.float32)
        factors[f"{path}.lora_B.weight"] = noise(outputs, RANK, scale=0.02, dtype=torch.float32)
    for item, shape in (("A", (RANK, VOCABULARY)), ("B", (HIDDEN, RANK))):
        name = f"model.embed_tokens.lora_embedding_{item}"
        factors[name] = noise(*shape, scale=0.02, dtype=torch.float32)
    named = {f"base_model.model.{name}": tensor for name, tensor in factors.items()}
    save_file(named, adapter / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": "all-linear"}
    settings |= {"base_model_name_or_path": "../base"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


class Watch:
    """The highest RssAnon while it is open."""

    def __enter__(self) -> "Watch":
        self.peak, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, anonymous_mb())


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def compare(base: Path, adapter: Path, out: Path, layers: int) -> None:
    """The largest distance from the float64 sum, in steps of bfloat16, over some tensors."""
    names = [f"model.layers.{layers - 1}.{item}" for item in ("self_attn.q_proj", "mlp.down_proj")]
    worst, total, differ = 0.0, 0, 0
    with (
        safe_open(base / "model.safetensors", "pt") as old,
        safe_open(adapter / "adapter_model.safetensors", "pt") as change,
        safe_open(out / "model.safetensors", "pt") as new,
    ):
        for name in names:
            A, B = (
                change.get_tensor(f"base_model.model.{name}.lora_{item}.weight").double()
                for item in "AB"
            )
            exact = old.get_tensor(f"{name}.weight").double() + 2 * B @ A
            folded = new.get_tensor(f"{name}.weight")
            _, exponent = torch.frexp(exact)
            steps = (folded.double() - exact).abs() / torch.exp2(exponent.double() - 8)
            worst = max(worst, float(steps.max()))
            total += exact.numel()
            differ += int((folded != exact.to(torch.bfloat16)).sum())
    print(f"against float64: at most {worst:.4f} ulp, {differ} of {total} elements differ")


if __name__ == "__main__":
    main()
