"""One merge in this process, timed without imports: `merge_inside.py TOOL CONFIG OUT`.

engine: only the streaming, without hashes, verification and renaming. floor: the same bytes read
and written by two threads, with nothing done to them.
"""

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PIECE = 1 << 20


def with_dualign(config: Path, out: Path) -> float:
    """All of `dualign merge`."""
    from dualign.merging.mergefile import load
    from dualign.merging.output import merge_into

    clock = time.perf_counter()
    merge_into(load(config), out)
    os.sync()
    return time.perf_counter() - clock


def with_engine(config: Path, out: Path) -> float:
    """Preflight and streaming."""
    from dualign.checkpoints.shards import write_weights
    from dualign.merging.merge import prepare
    from dualign.merging.mergefile import load

    out.mkdir()
    clock = time.perf_counter()
    prepared = prepare(load(config), seed=0)
    write_weights(prepared.weights, out, dtype="bfloat16")
    return time.perf_counter() - clock


def with_mergekit(config: Path, out: Path) -> float:
    """run_merge with the flags that suit it best."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(
        copy_tokenizer=False,
        write_model_card=False,
        quiet=True,
        out_shard_size=100_000_000,
        async_write=True,
    )
    made = MergeConfiguration.model_validate(yaml.safe_load(config.read_text()))
    clock = time.perf_counter()
    run_merge(made, str(out), options=options)
    os.sync()
    return time.perf_counter() - clock


def with_floor(config: Path, out: Path) -> float:
    """Read every input, write the bytes of the first, sync."""
    out.mkdir()
    names = re.findall(r"model: ([^,}]+)", config.read_text())
    handles = [os.open(Path(name) / "model.safetensors", os.O_RDONLY) for name in names]
    target = os.open(out / "model.safetensors", os.O_WRONLY | os.O_CREAT)
    size = os.fstat(handles[0]).st_size

    def copy(start: int) -> None:
        pieces = [os.pread(handle, _PIECE, start) for handle in handles]
        os.pwrite(target, pieces[0], start)

    clock = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(copy, range(0, size, _PIECE)))
    os.fsync(target)
    return time.perf_counter() - clock


if __name__ == "__main__":
    tool, config, out = sys.argv[1:]
    tools = {
        "dualign": with_dualign,
        "engine": with_engine,
        "mergekit": with_mergekit,
        "floor": with_floor,
    }
    print("seconds", tools[tool](Path(config), Path(out)))
