"""Merges in this process, timed without imports: `merge_inside.py TOOL CONFIG OUT [CONFIG OUT ...]`.

floor: the same bytes read and written by two threads, with nothing done to them.
"""

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PIECE = 1 << 16  # bytes: what dualign reads and writes of bfloat16 at once
_SHARE = 1 << 21


def with_dualign(config: Path, out: Path) -> float:
    """All of `dualign merge`."""
    from dualign.merging.mergekit.load import load
    from dualign.merging.output import merge_into

    clock = time.perf_counter()
    merge_into(load(config), out)
    os.sync()
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
    configuration = MergeConfiguration.model_validate(yaml.safe_load(config.read_text()))
    clock = time.perf_counter()
    run_merge(configuration, str(out), options=options)
    os.sync()
    return time.perf_counter() - clock


def with_floor(config: Path, out: Path) -> float:
    """Read every input, write the bytes of the first, sync."""
    out.mkdir()
    names = re.findall(r"model: ([^,}]+)", config.read_text())
    handles = [os.open(Path(name) / "model.safetensors", os.O_RDONLY) for name in names]
    target = os.open(out / "model.safetensors", os.O_WRONLY | os.O_CREAT)
    size = os.fstat(handles[0]).st_size

    def copy(share: int) -> None:
        piece = memoryview(bytearray(_PIECE))
        for start in range(share, min(share + _SHARE, size), _PIECE):
            for handle in handles:
                read = os.preadv(handle, [piece], start)
            os.pwrite(target, piece[:read], start)

    clock = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(copy, range(0, size, _SHARE)))
    os.fsync(target)
    os.sync()
    return time.perf_counter() - clock


if __name__ == "__main__":
    tools = {"dualign": with_dualign, "mergekit": with_mergekit, "floor": with_floor}
    paths = [Path(item) for item in sys.argv[2:]]
    for config, out in zip(paths[::2], paths[1::2], strict=True):
        try:
            print("seconds", tools[sys.argv[1]](config, out))
        except Exception as error:  # the parity table says which method fails
            print("failed", out.name, repr(error)[:100])
            if len(paths) == 2:
                raise
