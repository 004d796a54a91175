"""A stream of many made rows, read from the first to the last: is it level, and does it go on to the same bits?

    python benchmarks/streaming.py                       2 million rows in 40 files, undisturbed, then killed three times
    python benchmarks/streaming.py --rows 200000

Nothing is trained: each process reads packed rows as a trainer would, and keeps a hash over all of
them. Every 100 packed rows it writes its place, as a checkpoint does, and what it took so far.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

_FILES = 40
_PLACE_EVERY = 100
_STRETCHES = 10
_WORDS = [
    "the",
    "of",
    "a",
    "to",
    "is",
    "in",
    "number",
    "sum",
    "price",
    "apples",
    "train",
    "leaves",
    "at",
    "hour",
    "and",
    "from",
    "each",
    "how",
    "many",
    "we",
]


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--buffer", type=int, default=10_000)
    parser.add_argument("--read", type=Path, help="read the stream of this folder in this process")
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read, arguments.rows, arguments.buffer)
    else:
        compare(arguments.rows, arguments.buffer)


def compare(rows: int, buffer: int) -> None:
    """Read all rows undisturbed, and with three kills; print both."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data")
        size = write_rows(data, rows)
        print(
            json.dumps({"rows": rows, "files": _FILES, "megabytes": round(size / 2**20)}),
            flush=True,
        )
        calm, rough = Path(name, "calm"), Path(name, "rough")
        start(data, calm, rows, buffer).wait()
        undisturbed = stretches(calm)
        for line in undisturbed:
            print(json.dumps(line), flush=True)
        draw = random.Random(0)
        for part in (0.2, 0.45, 0.7):
            process = start(data, rough, rows, buffer)
            wanted = rows * (part + draw.random() / 10)
            while process.poll() is None and rows_so_far(rough) < wanted:
                time.sleep(0.2)
            process.kill()
            process.wait()
            print(json.dumps({"killed at": rows_so_far(rough)}), flush=True)
        start(data, rough, rows, buffer).wait()
        ends = [json.loads((folder / "place.json").read_text()) for folder in (calm, rough)]
        same = ends[0]["digest"] == ends[1]["digest"] and ends[0]["account"] == ends[1]["account"]
        largest = (Path(rough) / "place.json").stat().st_size
        print(json.dumps({"same bits": same, "rows": ends[0]["rows"], "place, bytes": largest}))
        print(json.dumps(ends[0]["account"]))


def write_rows(folder: Path, count: int) -> int:
    """Write rows of both modes, half of each, into files of equal length; return their bytes."""
    draw = random.Random(0)
    folder.mkdir()
    for number in range(_FILES):
        with (folder / f"{number:02}.jsonl").open("w") as file:
            for row in range(count // _FILES):
                words = " ".join(draw.choices(_WORDS, k=draw.randrange(4, 12)))
                answer = {"role": "assistant", "content": words[::-1]}
                if row % 2:
                    answer["reasoning_content"] = words
                mode = "think" if row % 2 else "no_think"
                turns = [{"role": "user", "content": f"{number} {row} {words}"}, answer]
                file.write(json.dumps({"mode": mode, "messages": turns}) + "\n")
    return sum(file.stat().st_size for file in folder.iterdir())


def start(data: Path, work: Path, rows: int, buffer: int) -> subprocess.Popen[bytes]:
    """Start a process that reads on from where `work` says."""
    work.mkdir(exist_ok=True)
    (work / "data").unlink(missing_ok=True)
    (work / "data").symlink_to(data)
    command = [sys.executable, __file__, "--rows", str(rows), "--buffer", str(buffer)]
    return subprocess.Popen([*command, "--read", str(work)])


def rows_so_far(work: Path) -> int:
    """Return how many rows the process has read by its last place."""
    path = work / "place.json"
    return int(json.loads(path.read_text())["rows"]) if path.is_file() else 0


def stretches(work: Path) -> list[dict[str, Any]]:
    """Return a line for each tenth of the rows, from what the process wrote."""
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def read(work: Path, rows: int, buffer: int) -> None:
    """Read packed rows until the sources begin again; go on from the place in `work`."""
    from dualign.data.config import DataConfig, SourceConfig, StreamConfig
    from dualign.data.request import DataRequest
    from dualign.data.stream.opening import open_stream
    from dualign.data.text.template import load_template
    from dualign.models.source import resolve_model
    from dualign.models.tokenizer import load_tokenizer
    from dualign.rundir import write_json

    source = SourceConfig(path=str(work / "data"))
    data = DataConfig(
        sources=(source,),
        mix={"think": 0.5, "no_think": 0.5},
        max_tokens=2048,
        streaming=StreamConfig(shuffle_buffer=buffer),
    )
    model = resolve_model("embedded:smollm2-135m-instruct")
    tokenizer, _ = load_tokenizer(model, "dualign", {}, None)
    stream = open_stream(DataRequest(data, tokenizer, load_template("dualign"), seed=1)).train
    position, digest, seen = 0, "", 0
    place = work / "place.json"
    if place.is_file():
        saved = json.loads(place.read_text())
        position, digest = saved["state"]["position"], saved["digest"]
        stream.go_to(saved["state"])
    log = Log(work / "log.jsonl", rows)
    for packed in stream:
        content = json.dumps(packed).encode()
        digest = sha256(digest.encode() + content).hexdigest()
        position += 1
        if position % _PLACE_EVERY:
            continue
        stream.release(position)
        account = stream.account(position)
        seen = sum(stats.kept for stats in account.groups.values())
        ended = any(stats.repeats for stats in account.groups.values())
        state = {"state": stream.state(position), "digest": digest, "rows": seen}
        write_json(place, {**state, "account": account.state()})
        log.write(seen)
        if ended:
            return


class Log:
    """Writes a line for each tenth of the rows: CPU time of a row, and the process's own memory."""

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._step = path, rows // _STRETCHES
        self._before = (0, time.process_time(), time.monotonic())

    def write(self, rows: int) -> None:
        """Write a line if another tenth is done."""
        before, cpu, clock = self._before
        if rows - before < self._step:
            return
        self._before = (rows, time.process_time(), time.monotonic())
        taken = rows - before
        line = {
            "rows": rows,
            "CPU microseconds a row": round((self._before[1] - cpu) / taken * 1e6),
            "rows a second": round(taken / (self._before[2] - clock)),
            "memory, MB": round(_anonymous() / 2**20),
            "peak, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 2**10


if __name__ == "__main__":
    main()
