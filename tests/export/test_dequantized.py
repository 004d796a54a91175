"""A GGUF file's numbers in transformers, and both modes of it beside the model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualign.checkpoints.checkpoint import read_json
from dualign.cli.main import main
from dualign.errors import CheckpointError
from dualign.export import both_modes
from dualign.export.comparison import ComparisonConfig
from dualign.export.convert import write_exact
from dualign.export.dequantized import dequantize_into
from dualign.export.export import ExportResult, export
from dualign.export.model_source import open_source
from dualign.models.loading import load_model

from .conftest import Make

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True)])
def test_an_exact_file_gives_the_model_back(
    kind: str, tied: bool, make: Make, tmp_path: Path
) -> None:
    """Rows of q and k, biases, an own head; the factors of positions have no place."""
    rope = {} if tied else {"rope_parameters": LLAMA3}
    folder = make(kind, num_hidden_layers=1, tie_word_embeddings=tied, **rope)
    source = open_source(str(folder), name="x", foreign=False)
    write_exact(source, tmp_path / "x.gguf", "f32", None)
    expected = load_model(str(folder)).state_dict()
    model = load_model(str(folder))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    assert source.layout is not None
    dequantize_into(model, tmp_path / "x.gguf", source.layout.tensors)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_quantized_files_are_compared_by_the_command(
    learnt_gguf: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(learnt_gguf.parent / "model"), tmp_path / "gguf"
    command = ["export", model, str(out), "--types", "q8_0", "--task", str(task_file)]
    assert main(command) == 0
    (quantized,) = read_json(out / "export.json")["files"]
    think, no_think = quantized["both_modes"]["modes"]
    assert think["accuracy"]["before"] == 1 and no_think["accuracy"]["before"] == 0.25
    assert 0 < think["trace"]["kl"] < both_modes.MAX_KL
    assert quantized["both_modes"]["beyond"] == []
    shown = capsys.readouterr().out
    assert "q8_0 beside" in shown and "KL in traces" in shown and "greedy answers" in shown


def test_a_worse_mode_is_refused_unless_that_is_allowed(
    learnt: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both_modes, "MAX_KL", -1.0)
    settings = ComparisonConfig(tasks=(str(task_file),), rows=1)
    types, out = ["f32", "q8_0", "iq4_nl"], tmp_path / "out"

    def write(settings: ComparisonConfig) -> ExportResult:
        return export(str(learnt), out, types=types, name="x", runtime=None, comparison=settings)

    with pytest.raises(
        CheckpointError, match=r"(?s)--allow-worse .*  q8_0: think: KL .*  iq4_nl: "
    ):
        write(settings)
    assert not list(tmp_path.iterdir())
    exact, first, second = write(replace(settings, allow_worse=True)).files
    assert exact.both_modes is None
    assert first.both_modes is not None and second.both_modes is not None
    kl = [file.both_modes.modes[1].answer.kl for file in (first, second)]
    assert 0 < kl[0] < kl[1]  # each with numbers of its own
    for entry in read_json(out / "export.json")["files"][1:]:
        assert len(entry["both_modes"]["beyond"]) == 3


@pytest.mark.parametrize("option", [["--allow-worse"], ["--rows", "3"], ["--task", "x.yaml"]])
def test_what_compares_both_modes_is_refused_for_exact_files(
    option: list[str], tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(tiny_llama), str(tmp_path / "out"), "--types", "f16"]
    assert main([*command, *option]) == 2
    assert "f32, f16 and bf16 are checked exactly" in capsys.readouterr().err
    assert main([*command, "--rows", "0"]) == 2
    assert not list(tmp_path.iterdir())
