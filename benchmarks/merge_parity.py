"""Every method against mergekit in float32: how many elements are the same in bfloat16, how far the rest is.

    python -m benchmarks.merge_parity WORK [TITLE]

With a part of a group's title only that is made, and printed.

Random methods are compared at density 1, where nothing is drawn. Writes benchmarks/merge_parity.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.merge import MERGEKIT, install_mergekit
from benchmarks.merge_inputs import make_inputs
from dualign.checkpoints.checkpoint import Checkpoint, read_whole
from dualign.checkpoints.dtypes import from_float
from dualign.checkpoints.embedded import embedded_model
from dualign.checkpoints.header import TensorSpec, write_header
from dualign.merging.mergekit.load import load
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
    "ram": ("ram", 3, [], {"epsilon": 0.0005}, True),
    "ramplus_tl": ("ramplus_tl", 3, [], {"epsilon": 0.0005, "alpha": 2}, True),
    "nearswap": ("nearswap", 1, [], {"t": 0.0005}, True),
    "arcee_fusion": ("arcee_fusion", 1, [], {}, True),
}  # fmt: skip
COMPAT = ("linear", "slerp", "task_arithmetic")
FLOAT32 = "dtype: float32\nout_dtype: bfloat16\n"
BFLOAT16 = "dtype: bfloat16\n"


def main() -> None:
    """Merge with both, compare, and write the tables."""
    work, only = Path(sys.argv[1]), "".join(sys.argv[2:])
    # torch's float32 sums, and so mergekit's karcher and slerp, hang on the number of threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    theirs = install_mergekit(work / "mergekit")
    small = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2048}
    groups = {
        "Random weights stored as float32, changes of 1e-3": make_inputs(
            work / "small-F32", 3, stored="F32", num_hidden_layers=2, **small
        ),
        "Random weights stored as bfloat16, changes of 1e-3": make_inputs(
            work / "small-BF16", 3, stored="BF16", num_hidden_layers=2, **small
        ),
        "SmolLM2-135M-Instruct (2 layers, 8192 tokens), changes of 2 % in bfloat16": make_real(
            work / "real", 3
        ),
    }
    lines = [
        "# Every method against mergekit",
        "",
        f"{MERGEKIT}, `dtype: float32`, `out_dtype: bfloat16`, as `python -m benchmarks.merge_parity WORK` makes it. Random methods at density 1, where nothing is "
        "drawn. torch has one thread. Differences below 2^-23 of the tensor's largest element, where everything cancels, count as none. docs/merging.md says where the rest comes from.",
    ]  # fmt: skip
    groups = {title: models for title, models in groups.items() if only in title}
    for title, models in groups.items():
        cells = compare(CASES, models, work, theirs, FLOAT32, compat=False)
        lines += ["", f"## {title}", "", *rows(cells)]
    lines += ["", "## `--compat mergekit`, both with `dtype: bfloat16`", ""]
    for title, models in groups.items():
        if "float32" in title:
            continue
        cells = compare({name: CASES[name] for name in COMPAT}, models, work, theirs, BFLOAT16, compat=True)  # fmt: skip
        lines += [title, "", *rows(cells), ""]
    if not only:
        (HERE / "merge_parity.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def rows(cells: dict[str, str]) -> list[str]:
    """Return the cells as a table."""
    lines = ["| method | identical | largest distance, bfloat16 steps | beyond one step |"]
    return [
        *lines,
        "|---|---|---|---|",
        *(f"| {name} | {entry} |" for name, entry in cells.items()),
    ]


def compare(
    cases: dict[str, Case], models: list[Path], work: Path, theirs: Path, head: str, *, compat: bool
) -> dict[str, str]:
    """The cells of every case; mergekit makes all of them in one process."""
    base, *tuned = models
    folder = work / "parity"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    arguments: list[str] = []
    for place, case in enumerate(cases.values()):
        config = folder / f"{place}.yml"
        config.write_text(head + config_of(case, base, tuned))
        merge_into(load(config, compat=compat), folder / f"ours-{place}")
        arguments += [str(config), str(folder / f"theirs-{place}")]
    command = [str(theirs), str(HERE / "merge_inside.py"), "mergekit", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    cells = {}
    for place, name in enumerate(cases):
        both = [folder / f"{who}-{place}" for who in ("ours", "theirs")]
        whole = any(both[1].glob("*.safetensors"))
        cells[name] = compared(*both) if whole else "mergekit fails | | "
    return cells


def make_real(folder: Path, count: int) -> list[Path]:
    """The embedded model, cut to 2 layers and 8192 tokens, and changed copies of it."""
    source = Checkpoint(embedded_model())
    names = [name for name in source.entries if not re.search(r"layers\.(?!0\.|1\.)", name)]
    config = {**source.config, "num_hidden_layers": 2, "vocab_size": 8192, "dtype": "bfloat16"}
    folders = [folder / "base", *(folder / f"m{i}" for i in range(1, count + 1))]
    for number, path in enumerate(folders):
        generator = np.random.default_rng(number)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name in names:
            values = read_whole(source, name)
            values = values[:8192] if "embed" in name else values
            change = generator.standard_normal(values.shape, np.float32) * values.std() * 0.02
            tensors[name] = values + change if number else values
        planned = [TensorSpec(name, tensor.shape, "BF16") for name, tensor in tensors.items()]
        data = b"".join(from_float(tensor, "BF16").tobytes() for tensor in tensors.values())
        (path / "model.safetensors").write_bytes(write_header(planned) + data)
        (path / "config.json").write_text(json.dumps(config))
    return folders


def config_of(case: Case, base: Path, tuned: list[Path]) -> str:
    """mergekit's YAML of a case."""
    method, count, each, shared, with_base = case
    lines = [f"merge_method: {method}"]
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
            parameters = ", ".join(f"{key}: {value}" for key, value in each[place].items())
            lines.append(f"    parameters: {{{parameters}}}")
    return "\n".join(lines) + "\n"


def compared(ours: Path, theirs: Path) -> str:
    """The share that is identical, and the steps between the rest."""
    a, b = Checkpoint(ours), Checkpoint(theirs)
    same = beyond = total = largest = 0
    for name in a.entries:
        x, y = (read_whole(item, name).reshape(-1) for item in (a, b))
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
