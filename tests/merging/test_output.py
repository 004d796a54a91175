"""A merge on its own: complete or absent, the same bytes always, checked and described."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dualign.checkpoints import shards
from dualign.cli.main import main
from dualign.errors import CheckpointError, MergeError
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
from dualign.merging.verify import verify_folder
from tests.checkpoints.folders import read, tensors, write_file, write_model

TIES = """
merge_method: {method}
base_model: base
dtype: bfloat16
models: [{{model: base}}, {{model: a}}, {{model: b}}]
parameters: {{weight: 0.5, density: 0.6}}
"""
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, seed)
    (tmp_path / "linear.yml").write_text(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    return tmp_path


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


@pytest.mark.parametrize("weights", [(0.3, 0.3, 0.4), (0.9, 0.1, 0.0), (1, 1, 1), (0.8, 0.5, -0.2)])
def test_a_linear_merge_is_the_float64_sum_rounded_once(
    tmp_path: Path, weights: tuple[float, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1 << 18, generator=generator) * 0.02
    inputs = [(base + torch.randn(1 << 18, generator=generator) * 1e-3).bfloat16() for _ in weights]
    for place, tensor in enumerate(inputs):
        write_model(tmp_path / str(place), values={"w": tensor.float().numpy()}, dtype="BF16")
    entries = "".join(
        f"  - {{model: ./{place}, parameters: {{weight: {weight}}}}}\n"
        for place, weight in enumerate(weights)
    )
    (tmp_path / "m.yml").write_text(f"merge_method: linear\nmodels:\n{entries}")
    merge_into(load(tmp_path / "m.yml"), tmp_path / "out")
    exact = sum(w * x.double() for w, x in zip(weights, inputs, strict=True)) / sum(weights)
    found = torch.from_numpy(read(tmp_path / "out")["w"])
    rounded = exact.bfloat16()
    assert (found.bfloat16() == rounded).double().mean() >= 0.9999
    ulps = (found.bfloat16().view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
    assert ulps.max() <= 1
    bias = ((found.double() - exact).sum() / exact.abs().sum()).abs()
    assert bias < 3e-5


def test_hash_seeds_do_not_change_a_byte(folder: Path) -> None:
    (folder / "m.yml").write_text(TIES.format(method="dare_ties"))
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "dualign", "merge", str(folder / "m.yml")]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, str(folder / seed)], check=True, env=environment)
    first, second = files(folder / "1"), files(folder / "2")
    assert first.pop("README.md") != second.pop("README.md")  # its title is the folder's name
    assert first == second


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "slerp"])
def test_threads_do_not_change_a_byte(folder: Path, method: str) -> None:
    text = TIES.format(method=method)
    if method == "slerp":
        text = "merge_method: slerp\nbase_model: base\nmodels: [{model: a}]\nparameters: {t: 0.4}\n"
    (folder / "m.yml").write_text(text)
    merge = load(folder / "m.yml")
    merge_into(merge, folder / "one", seed=3, threads=1)
    merge_into(merge, folder / "four", seed=3, threads=4)
    first, second = files(folder / "one"), files(folder / "four")
    assert first["model.safetensors"] == second["model.safetensors"]
    assert first["merge.json"] == second["merge.json"]
    if method in ("dare_ties", "della"):
        merge_into(merge, folder / "other", seed=4)
        assert files(folder / "other")["model.safetensors"] != first["model.safetensors"]


DRIVER = """
import os, signal, sys, threading
from pathlib import Path
from dualign.checkpoints.shards import write_weights
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
write_weights.__kwdefaults__["shard_bytes"] = 600_000
merge, calls = load(Path(sys.argv[1])), int(sys.argv[3])
def count(*_):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
threading.setprofile(count)
sys.setprofile(count)
merge_into(merge, Path(sys.argv[2]))
sys.setprofile(None)
print(int(sys.argv[3]) - calls)
"""


def calls_of_merge(config: Path, out: Path, *, kill_at: int = 0) -> int:
    """Calls and returns of functions in all threads until it ended; 0 if it was killed at one of them."""
    command = [sys.executable, "-c", DRIVER, str(config), str(out), str(kill_at)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return int(done.stdout or 0)


def kill_often(folder: Path, times: int) -> None:
    """Kill at random moments; the folder is never half there, and the end is always the same."""
    big = np.random.default_rng(0).normal(0, 0.5, (12, 40, 1000)).astype(np.float32)
    for place, name in enumerate(("base", "a", "b")):
        values = {f"w{i}": item + np.float32(place) for i, item in enumerate(big)}
        write_model(folder / name, values=values, dtype="BF16")
    config, out = folder / "m.yml", folder / "out"
    config.write_text(TIES.format(method="ties"))
    calls = calls_of_merge(config, folder / "calm" / "out")
    expected = files(folder / "calm" / "out")
    drawn, killed = random.Random(0), 0
    for _ in range(times):
        killed += not calls_of_merge(config, out, kill_at=drawn.randrange(1, calls))
        if out.exists():
            assert files(out) == expected
            verify_folder(out, tensors=1)
            for file in out.iterdir():
                file.unlink()
            out.rmdir()
    assert calls_of_merge(config, out)
    verify_folder(out, tensors=12)
    assert files(out) == expected
    assert killed >= times // 4


def test_kill_9_leaves_the_output_absent_or_complete(folder: Path) -> None:
    kill_often(folder, 4)


@pytest.mark.slow
def test_a_hundred_kills_leave_the_output_absent_or_complete(folder: Path) -> None:
    kill_often(folder, 100)


def test_finished_shards_are_kept_by_the_next_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shards.write_weights.__kwdefaults__ or {}, "shard_bytes", 800)
    merge, rename, renamed = load(folder / "linear.yml"), Path.rename, []

    def stop_at_the_third(self: Path, target: Path) -> Path:
        if Path(target).suffix == ".safetensors":
            renamed.append(target)
            if len(renamed) == 3:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        merge_into(merge, folder / "out")
    assert not (folder / "out").exists()
    first = {file.name: file.stat().st_ino for file in (folder / ".out.partial").glob("model*")}
    assert len(first) == 2
    monkeypatch.setattr(Path, "rename", rename)
    merge_into(merge, folder / "out")
    assert {name: (folder / "out" / name).stat().st_ino for name in first} == first
    assert not list((folder / "out").glob(".*"))
    verify_folder(folder / "out", tensors=100)


def test_changed_inputs_start_anew(folder: Path) -> None:
    partial = folder / ".out.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"of another merge")
    merge_into(load(folder / "linear.yml"), folder / "out")
    verify_folder(folder / "out")


def test_a_folder_that_is_there_is_not_overwritten_unless_told(folder: Path) -> None:
    merge = load(folder / "linear.yml")
    merge_into(merge, folder / "out")
    with pytest.raises(CheckpointError, match=r"out: is there already; .*--force"):
        merge_into(merge, folder / "out")
    merge_into(merge, folder / "out", force=True)


def test_merge_json_says_what_went_in_and_came_out(folder: Path) -> None:
    import hashlib

    merge_into(load(folder / "linear.yml"), folder / "out")
    record = json.loads((folder / "out" / "merge.json").read_text())
    digest = hashlib.sha256((folder / "out" / "model.safetensors").read_bytes()).hexdigest()
    assert record["shards"] == {"model.safetensors": digest}
    source = hashlib.sha256((folder / "a" / "model.safetensors").read_bytes()).hexdigest()
    assert record["models"][0]["sha256"] == {str(folder / "a" / "model.safetensors"): source}
    assert record["parameters"][0]["applied"] == [0.5, 0.5]
    assert record["method"] == "linear" and record["seed"] == 0
    assert set(record["versions"]) == {"python", "dualign", "numpy"}


def test_an_inputs_hash_is_remembered_and_verify_reads_it_anyway(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = folder / "known" / "digests.json"
    monkeypatch.setenv("DUALIGN_DIGESTS", str(known))
    first = merge_into(load(folder / "linear.yml"), folder / "first")
    digest = first["models"][0]["sha256"][str(folder / "a" / "model.safetensors")]
    known.write_text(known.read_text().replace(digest, "f" * 64))
    merge_into(load(folder / "linear.yml"), folder / "second")
    with pytest.raises(MergeError, match=f"isn't the file that was merged: sha256 {digest}"):
        verify_folder(folder / "second")
    verify_folder(folder / "first")


def test_a_cache_that_cannot_be_written_does_not_stop_a_merge(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("DUALIGN_DIGESTS", str(folder / "file" / "digests.json"))
    merge_into(load(folder / "linear.yml"), folder / "out")
    verify_folder(folder / "out")


def test_the_card_names_the_models_and_holds_the_config(folder: Path) -> None:
    record = merge_into(load(folder / "linear.yml"), folder / "out")
    card = (folder / "out" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\ntags:\n- merge\n- dualign\n---\n\n# out\n"
    )
    digest = record["models"][1]["sha256"][str(folder / "b" / "model.safetensors")]
    assert f"| {folder / 'b'} | model.safetensors {digest[:12]} |" in card
    assert (folder / "linear.yml").read_text().strip() in card


def test_verify_finds_a_changed_output_and_a_changed_input(folder: Path) -> None:
    merge_into(load(folder / "linear.yml"), folder / "out")
    verdict = verify_folder(folder / "out", tensors=2)
    assert (verdict.shards, verdict.inputs, len(verdict.tensors)) == (1, 2, 2)
    write_file(folder / "a" / "model.safetensors", tensors(9))
    with pytest.raises(MergeError, match=r"a/model.safetensors: isn't the file that was merged"):
        verify_folder(folder / "out")
    whole = bytearray((folder / "out" / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (folder / "out" / "model.safetensors").write_bytes(whole)
    with pytest.raises(MergeError, match=r"out/model.safetensors: was changed after"):
        verify_folder(folder / "out")
    with pytest.raises(CheckpointError, match=r"has no merge.json"):
        verify_folder(folder / "b")


def test_verify_computes_random_methods_and_nested_merges_again(folder: Path) -> None:
    (folder / "m.yml").write_text(
        "name: soup\nmerge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: a}, {model: b}]\n---\n"
        + TIES.format(method="dare_ties").replace("{model: a}", "{model: soup}")
    )
    merge_into(load(folder / "m.yml"), folder / "out", seed=7)
    assert len(verify_folder(folder / "out", tensors=99).tensors) == 10


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = str(folder / "linear.yml"), str(folder / "out")
    assert main(["merge", config, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "linear of" in said and "writes    0.00 GB: model.safetensors" in said
    assert not (folder / "out").exists()
    assert main(["merge", config, out, "--threads", "1"]) == 0
    assert "linear of 2 models, 10 tensors" in capsys.readouterr().out
    assert main(["verify", out]) == 0
    assert "1 shards and 2 inputs have their hashes" in capsys.readouterr().out
    assert main(["diff", str(folder / "a"), out, "--plot", str(folder / "d.png")]) == 0
    said = capsys.readouterr().out
    assert "model.layers.3" in said and (folder / "d.png").stat().st_size > 1000
    assert main(["merge", config]) == 2
    assert "expected one folder to write" in capsys.readouterr().err
    assert main(["merge", config, out]) == 2
    assert "is there already" in capsys.readouterr().err


def test_diff_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dualign.checkpoints.checkpoint import Checkpoint
    from dualign.merging.diff import distances

    for name, values in (("a", [3.0, 4.0]), ("b", [3.0, 3.0])):
        write_model(folder / name, values={"w": np.float32(values)})
    (found,) = distances(Checkpoint(folder / "a"), Checkpoint(folder / "b"))
    assert (found.relative, found.largest, found.changed) == (0.2, 1.0, 0.5)
    assert found.cosine == pytest.approx(21 / (5 * 18**0.5))


def test_a_merge_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from dualign.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'safetensors') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "merge", str(folder / "linear.yml"), str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"


MEASURED = """
import os, sys
from pathlib import Path
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
def megabytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
for folder in map(Path, sys.argv[1:]):
    if child := os.fork():  # a process each, which has imported nothing but this
        assert os.waitpid(child, 0)[1] == 0, folder
        continue
    merge = load(folder / "m.yml")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = megabytes("VmHWM")
    merge_into(merge, folder / "out", threads=2)
    print(megabytes("VmHWM") - start, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_grows_neither_with_the_tensors_nor_much_with_the_models(tmp_path: Path) -> None:
    def merge_of(method: str, models: int, rows: int) -> Path:
        folder = tmp_path / f"{method}-{models}-{rows}"
        values = np.random.default_rng(0).normal(0, 0.02, (rows, 1024)).astype(np.float32)
        for place in range(models + 1):
            changed = {"w": values + np.float32(place * 1e-3)}
            write_model(folder / str(place), values=changed, dtype="BF16")
        entries = "".join(
            f"  - {{model: ./{place + 1}, parameters: {{weight: 1}}}}\n" for place in range(models)
        )
        base = "" if method == "linear" else "base_model: ./0\nparameters: {density: 0.5}\n"
        (folder / "m.yml").write_text(f"merge_method: {method}\n{base}models:\n{entries}")
        return folder

    sizes = ((2, 2_000), (2, 8_000), (8, 2_000))
    merges = [merge_of(method, *size) for method in ("linear", "ties") for size in sizes]
    command = [sys.executable, "-c", MEASURED, *map(str, merges)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [float(line) for line in done.stdout.split()]
    for small, tall, many in (peaks[:3], peaks[3:]):
        assert tall < 1.2 * small + 8  # the tall tensor takes 16 MB, as float64 66 MB
        assert many < small + 32
        assert max(small, tall, many) < 64
