"""Every method against mergekit in float32: how many elements are the same in bfloat16, how far the rest is.

    python -m benchmarks.merge_parity WORK

Random methods are compared at density 1, where nothing is drawn. Writes benchmarks/merge_parity.md.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.merge import FAIR, MERGEKIT, install_mergekit
from benchmarks.merge_inputs import make_inputs
from dualign.checkpoints.checkpoint import Checkpoint, read_whole
from dualign.checkpoints.numbers import NAMES
from dualign.merging.mergefile import load
from dualign.merging.output import merge_into

HERE = Path(__file__).parent
WEIGHTS = [0.5, 0.3, 0.4]
# Method -> number of models, parameters of each, parameters of all, with the base.
Case = tuple[str, int, list[dict[str, float]], dict[str, object], bool]
CASES: dict[str, Case] = {
    "linear": ("linear", 3, [{"weight": w} for w in WEIGHTS], {}, False),
    "slerp": ("slerp", 1, [], {"t": 0.3}, True),
    "nuslerp": ("nuslerp", 2, [{"weight": w} for w in WEIGHTS], {}, False),
    "nuslerp of changes": ("nuslerp", 2, [{"weight": w} for w in WEIGHTS], {}, True),
    "nuslerp by row": ("nuslerp", 2, [{"weight": w} for w in WEIGHTS], {"nuslerp_flatten": False}, True),
    "multislerp": ("multislerp", 3, [{"weight": w} for w in WEIGHTS], {}, False),
    "multislerp of changes": ("multislerp", 3, [{"weight": w} for w in WEIGHTS], {}, True),
    "karcher": ("karcher", 3, [], {}, False),
    "task_arithmetic": ("task_arithmetic", 3, [{"weight": w} for w in WEIGHTS], {"lambda": 0.7}, True),
    "ties": ("ties", 3, [{"weight": w, "density": 0.5} for w in WEIGHTS], {}, True),
    "dare_linear": ("dare_linear", 3, [{"weight": w, "density": 1.0} for w in WEIGHTS], {}, True),
    "dare_ties": ("dare_ties", 3, [{"weight": w, "density": 1.0} for w in WEIGHTS], {}, True),
    "della": ("della", 3, [{"weight": w, "density": 1.0} for w in WEIGHTS], {}, True),
    "della_linear": ("della_linear", 3, [{"weight": w, "density": 1.0} for w in WEIGHTS], {}, True),
    "breadcrumbs": ("breadcrumbs", 3, [{"weight": w, "density": 0.6, "gamma": 0.02} for w in WEIGHTS], {}, True),
    "breadcrumbs_ties": ("breadcrumbs_ties", 3, [{"weight": w, "density": 0.6, "gamma": 0.02} for w in WEIGHTS], {}, True),
    "model_stock": ("model_stock", 3, [], {}, True),
    "model_stock by row": ("model_stock", 3, [], {"filter_wise": True}, True),
    "sce": ("sce", 3, [], {}, True),
    "sce of a part": ("sce", 3, [], {"select_topk": 0.3}, True),
    "nearswap": ("nearswap", 1, [], {"t": 0.0005}, True),
    "arcee_fusion": ("arcee_fusion", 1, [], {}, True),
}  # fmt: skip


def main() -> None:
    """Merge with both, compare, and write the table."""
    work = Path(sys.argv[1])
    kinds = sys.argv[2].split(",") if len(sys.argv) > 2 else ["F32", "BF16"]
    theirs = install_mergekit(work / "mergekit")
    lines = [
        "# Every method against mergekit",
        "",
        f"{MERGEKIT}, `dtype: float32`, `out_dtype: bfloat16`; random SmolLM3-shaped weights with changes of 1e-3, as "
        "`python -m benchmarks.merge_parity WORK` makes them. Random methods at density 1. Differences below 2^-23 of the "
        "tensor's largest element, where everything cancels, count as none.",
    ]
    for stored in kinds:
        lines += [
            "",
            f"## Inputs stored as {NAMES[stored]}",
            "",
            "| method | identical | largest distance, bfloat16 steps | beyond one step |",
            "|---|---|---|---|",
        ]
        for name, case in CASES.items():
            lines.append(f"| {name} | {one_case(case, work, theirs, stored)} |")
            print(lines[-1], flush=True)
    (HERE / "merge_parity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def one_case(case: Case, work: Path, theirs: Path, stored: str) -> str:
    """The cells of a case."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2048}
    folder = work / f"small-{stored}"
    base, *tuned = make_inputs(folder, 3, stored=stored, num_hidden_layers=2, **sizes)
    config_file = work / f"parity-{stored}.yml"
    config_file.write_text(config_of(case, base, tuned))
    outs = [work / f"{who}-{stored}" for who in ("ours", "theirs")]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
    merge_into(load(config_file), outs[0])
    command = [str(theirs.parent / "mergekit-yaml"), str(config_file), str(outs[1]), *FAIR]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return f"mergekit fails: {done.stderr.splitlines()[-1][:80]} | | "
    return compared(*outs)


def config_of(case: Case, base: Path, tuned: list[Path]) -> str:
    """mergekit's YAML of a case."""
    method, count, each, shared, with_base = case
    lines = [f"merge_method: {method}", "dtype: float32", "out_dtype: bfloat16"]
    if with_base:
        lines.append(f"base_model: {base}")
    if shared:
        lines.append("parameters:")
        lines += [f"  {key}: {str(value).lower()}" for key, value in shared.items()]
    lines.append("models:")
    if with_base:
        lines.append(f"  - model: {base}")
    for place, model in enumerate(tuned[:count]):
        lines.append(f"  - model: {model}")
        if each:
            given = ", ".join(f"{key}: {value}" for key, value in each[place].items())
            lines.append(f"    parameters: {{{given}}}")
    return "\n".join(lines) + "\n"


def compared(ours: Path, theirs: Path) -> str:
    """The share that is identical, and the steps between the rest."""
    a, b = Checkpoint(ours), Checkpoint(theirs)
    same = beyond = total = largest = 0
    for name in a.entries:
        x, y = (read_whole(one, name).reshape(-1) for one in (a, b))
        apart = np.abs(steps(x) - steps(y))
        # What cancels leaves the noise of a float32 sum, which is many steps of nearly nothing.
        apart[np.abs(x - y) < 2.0**-23 * np.abs(x).max()] = 0
        same += int((apart == 0).sum())
        beyond += int((apart > 1).sum())
        largest = max(largest, int(apart.max()))
        total += apart.size
    return f"{same / total:.4%} | {largest} | {beyond / total:.4%}"


def steps(values: np.ndarray) -> np.ndarray:
    """bfloat16 values as whole numbers in their order."""
    bits = (values.view(np.uint32) >> 16).astype(np.int64)
    return np.where(bits < 1 << 15, bits, (1 << 15) - bits)


if __name__ == "__main__":
    main()
