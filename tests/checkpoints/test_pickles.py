"""pytorch_model.bin: refused, until it is asked for; and nothing in it is run."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dualign.checkpoints.checkpoint import Checkpoint
from dualign.cli.main import main
from dualign.errors import CheckpointError, MergeError
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
from dualign.merging.verify import verify_folder
from tests.checkpoints.folders import read, tensors, write_json, write_model

TEXT = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
ALLOWED = TEXT + "allow_pickle: true\n"


def pickled(folder: Path, seed: int, *, dtype: torch.dtype = torch.float32, **save: bool) -> Path:
    """The model of `write_model` as pytorch_model.bin."""
    write_model(folder, seed)
    values = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in tensors(seed).items()}
    torch.save(
        values, folder / "pytorch_model.bin", **{f"_{key}": item for key, item in save.items()}
    )  # type: ignore[arg-type]
    (folder / "model.safetensors").unlink()
    return folder


def merged(folder: Path, text: str) -> Path:
    (folder / "merge.yml").write_text(text)
    merge_into(load(folder / "merge.yml"), folder / "out", force=True)
    return folder / "out"


def test_a_pickle_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    write_model(tmp_path / "a", 1)
    pickled(tmp_path / "b", 2)
    with pytest.raises(
        CheckpointError, match="is a pickle: save it as safetensors first, or allow"
    ):
        merged(tmp_path, TEXT)
    out = merged(tmp_path, ALLOWED)
    a, b = tensors(1), tensors(2)
    for name, found in read(out).items():
        np.testing.assert_allclose(found, (a[name] + b[name]) / 2, atol=1e-7)
    assert verify_folder(out, tensors=20).tensors
    record = json.loads((out / "merge.json").read_text())
    assert [Path(item).name for item in record["models"][1]["sha256"]] == ["pytorch_model.bin"]
    (tmp_path / "merge.yml").write_text(TEXT)
    config, out = str(tmp_path / "merge.yml"), tmp_path / "again"
    assert main(["merge", config, str(out)]) == 2
    assert main(["merge", config, str(out), "--allow-pickle"]) == 0


def test_shards_bfloat16_and_a_head_that_shares_its_storage(tmp_path: Path) -> None:
    b = pickled(tmp_path / "b", 2, dtype=torch.bfloat16)
    values = torch.load(b / "pytorch_model.bin", weights_only=True)
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    names = sorted(values)
    weight_map = {}
    for part in (0, 1):
        file = f"pytorch_model-{part + 1:05d}-of-00002.bin"
        mine = [name for name in names if name.endswith("q_proj.weight") == bool(part)]
        torch.save({name: values[name] for name in mine}, b / file)
        weight_map |= dict.fromkeys(mine, file)
    (b / "pytorch_model.bin").unlink()
    write_json(b / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    found = Checkpoint(b, allow_pickle=True)
    assert "lm_head.weight" not in found.entries  # the config says that it is tied
    for name, entry in found.entries.items():
        assert entry.dtype == "BF16"
        read_back = found.reader(name).read(0, entry.size).reshape(entry.shape)
        assert np.array_equal(read_back, values[name].float().numpy())
    write_json(b / "pytorch_model.bin.index.json", {"weight_map": {**weight_map, "x": "../x.bin"}})
    with pytest.raises(CheckpointError, match=r"'\.\./x.bin' isn't a file of this folder"):
        Checkpoint(b, allow_pickle=True)


class Evil:
    """Makes a file when it is unpickled the usual way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    write_model(tmp_path / "a", 1)
    b, mark = pickled(tmp_path / "b", 2), tmp_path / "it-ran"
    torch.save({"w": torch.ones(1), "x": Evil(f"touch {mark}")}, b / "pytorch_model.bin")
    message = (
        r"b/pytorch_model.bin: asks for (posix|nt).system while it is read.*nothing of it was run"
    )
    with pytest.raises(CheckpointError, match=message):
        merged(tmp_path, ALLOWED)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    # The file is as bad as it looks: read the usual way, it does what it says.
    torch.load(b / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def old_form(file: Path) -> None:
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)


def spoiled_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"w": 1}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "not a whole file of torch.save's zip form"),
        (old_form, "not a whole file of torch.save's zip form"),
        (spoiled_zip, "not a whole file of torch.save's zip form|expected tensors by name"),
        (lambda file: file.write_bytes(b"junk"), "pytorch_model.bin: "),
        (lambda file: torch.save([torch.ones(1)], file), "expected tensors by name, found list"),
        (lambda file: torch.save({"w": 3}, file), "expected tensors by name, found 'w', a int"),
        (lambda file: torch.save({"w": torch.ones(2, 3).t()}, file), "w isn't stored in one piece"),
        (lambda file: torch.save({"w": torch.ones(1).expand(9)}, file), "w isn't stored in one piece"),
        (lambda file: torch.save({"w": torch.ones(2).to(torch.int8)}, file), "w is stored as I8"),
        (lambda file: torch.save({"w": torch.tensor([1.0, torch.nan])}, file), "only .* has the tensor"),
    ],
)  # fmt: skip
def test_a_broken_pickle_is_refused(tmp_path: Path, harm, message: str) -> None:
    write_model(tmp_path / "a", 1)
    b = pickled(tmp_path / "b", 2)
    harm(b / "pytorch_model.bin")
    with pytest.raises((CheckpointError, MergeError), match=message):
        merged(tmp_path, ALLOWED)
    assert not (tmp_path / "out").exists()


def test_a_nan_in_a_pickle_is_named(tmp_path: Path) -> None:
    b = pickled(tmp_path / "b", 2)
    values = torch.load(b / "pytorch_model.bin", weights_only=True)
    values["model.norm.weight"][5] = torch.nan
    torch.save(values, b / "pytorch_model.bin")
    write_model(tmp_path / "a", 1)
    message = r"pytorch_model.bin: model.norm.weight holds NaN .* nan at \[5\] first"
    with pytest.raises(MergeError, match=message):
        merged(tmp_path, ALLOWED)


MEASURED = """
import sys
from pathlib import Path
import torch
from dualign.checkpoints.checkpoint import Checkpoint
def now():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith("RssAnon")) / 1024
start, peak = now(), 0.0
found = Checkpoint(Path(sys.argv[1]), allow_pickle=True)
for name, entry in found.entries.items():
    reader = found.reader(name)
    for place in range(0, entry.size, 1 << 15):
        reader.read(place, min(place + (1 << 15), entry.size))
        peak = max(peak, now())
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_stays_flat_over_a_mapped_file(tmp_path: Path) -> None:
    write_model(tmp_path / "a", 1, values={"w": np.ones((1, 1), np.float32)})
    (tmp_path / "a" / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1024, 16384)}, tmp_path / "a" / "pytorch_model.bin")  # 64 MB
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 16
