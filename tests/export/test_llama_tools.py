"""llama.cpp's own tools and importance matrices: llama-quantize reads ours, we read llama-imatrix's.

They run where both are on the PATH; llama-cpp-python's source package has theirs, in vendor/llama.cpp/tools.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dualign.export.convert import write_exact
from dualign.export.imatrix import (
    Importance,
    ImportanceFile,
    measure,
    read_importance,
    write_importance,
)
from dualign.export.model_source import ExportSource, open_source
from dualign.export.quantize import quantize

from .conftest import Make
from .test_quantize import require_same_files

CHUNK = 64  # tokens that llama-imatrix reads at once
TOOLS = ("llama-quantize", "llama-imatrix")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)} on the PATH"
)


def run(tool: str, *arguments: object) -> str:
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(make: Make) -> ExportSource:
    folder = make("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    return open_source(str(folder), name="x", foreign=False)


@pytest.fixture(scope="module")
def exact(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exact") / "x-F16.gguf"
    write_exact(source, file, "f16", None)
    return file


@pytest.fixture(scope="module")
def chunks(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The license, cut as llama-imatrix cuts a text."""
    ids = tokenizer((Path(__file__).parents[2] / "LICENSE").read_text(), add_special_tokens=False)[
        "input_ids"
    ]
    return [ids[start : start + CHUNK] for start in range(0, len(ids) - CHUNK + 1, CHUNK)]


@pytest.fixture(scope="module")
def importance(source: ExportSource, chunks: list[list[int]]) -> Importance:
    model = AutoModelForCausalLM.from_pretrained(source.model, dtype=torch.float32)
    return measure(model, chunks, "llama", "the license")


def require_same_packing(
    importance: Importance, matrix: Path, exact: Path, type: str, folder: Path
) -> None:
    """Pack by us and by llama-quantize, which reads the file itself."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    quantize(
        exact,
        ours,
        type=type,
        importance=ImportanceFile(importance=importance, file=matrix, record={}),
    )
    run("llama-quantize", "--imatrix", matrix, exact, theirs, type.upper(), 1)
    require_same_files(ours, theirs)
    fields = [GGUFReader(file).fields for file in (ours, theirs)]
    for key in ("dataset", "entries_count", "chunks_count"):
        values = [file[f"quantize.imatrix.{key}"].contents() for file in fields]
        assert values[0] == values[1], key
    kinds = [file["general.file_type"].contents() for file in fields]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("type", ["q2_k", "iq2_xs", "iq3_xxs", "q4_k_m"])
def test_llama_quantize_reads_our_matrix(
    type: str, importance: Importance, exact: Path, tmp_path: Path
) -> None:
    write_importance(tmp_path / "x-imatrix.gguf", importance, "llama")
    require_same_packing(importance, tmp_path / "x-imatrix.gguf", exact, type, tmp_path)


def test_llama_imatrix_measures_what_we_do(
    source: ExportSource, importance: Importance, exact: Path, tmp_path: Path
) -> None:
    """Its file is read, agrees up to the rounding of its 16 bits, and packs as llama-quantize does by it."""
    matrix = tmp_path / "theirs.gguf"
    text = Path(__file__).parents[2] / "LICENSE"
    run("llama-imatrix", "-m", exact, "-f", text, "-o", matrix, "-c", CHUNK, "-t", 1, "--no-ppl")
    assert source.layout is not None
    theirs = read_importance(matrix, {t.name: t.shape for t in source.layout.tensors})
    assert theirs.tokens == importance.tokens and theirs.rows == importance.rows
    for name in importance.sums:
        first, second = importance.columns(name), theirs.columns(name)
        assert first is not None and second is not None
        assert np.abs(second / first - 1).mean() < 0.02, name
    require_same_packing(theirs, matrix, exact, "iq2_xs", tmp_path)
