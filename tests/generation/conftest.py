"""A tiny model behind llama.cpp's server; see LEARNT for what it says."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def learnt_gguf(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dualign.export.convert import write_exact
    from dualign.export.llama_runtime import installed
    from dualign.export.model_source import open_source

    if "xllamacpp" not in installed():
        pytest.skip("needs xllamacpp, which runs llama.cpp")
    folder = tmp_path_factory.mktemp("gguf")
    mergeable = shutil.copytree(learnt, folder / "model")
    _add_a_merge(mergeable / "tokenizer.json")
    file = folder / "learnt.gguf"
    write_exact(open_source(str(mergeable), name="learnt", foreign=False), file, "f32", None)
    return file


def _add_a_merge(file: Path) -> None:
    """llama.cpp wants a merge: one of bytes that no UTF-8 has, in the place of another such byte."""
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["\u00fe\u00fe"] = vocabulary.pop("\u00ff")
    content["model"]["merges"] = [["\u00fe", "\u00fe"]]
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def learnt_server(learnt_gguf: Path) -> Iterator[str]:
    from tests.generation.servers import llama_server

    with llama_server(learnt_gguf) as address:
        yield address
