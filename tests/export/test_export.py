"""`dualign export`: files, check, and what is left when something is wrong."""

import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign.checkpoints.adapters import fold
from dualign.cli.main import main
from dualign.errors import CheckpointError, ConfigError
from dualign.export.check import QUESTIONS, AnswerComparison, CheckResult, ask_transformers
from dualign.export.convert import find_converter, write_exact
from dualign.export.export import TYPES, ExportFile, ExportResult, export
from dualign.export.llama_runtime import installed
from dualign.export.model_source import open_source
from dualign.export.show import closing, summary
from dualign.hashing import sha256
from dualign.models.new_rows import give_rows
from dualign.models.new_tokens import NewToken, add_new_tokens

from .conftest import YARN, Make

needs_runtime = pytest.mark.skipif(
    "xllamacpp" not in installed(), reason="needs xllamacpp, which runs llama.cpp"
)


@needs_runtime
def test_the_command_writes_checked_files_a_modelfile_and_a_record(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gguf"
    assert main(["export", str(tiny_llama), str(out), "--name", "mine"]) == 0
    names = ["Modelfile", "export.json", "mine-F16.gguf", "mine-Q4_K_M.gguf", "mine-Q8_0.gguf"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "FROM ./mine-Q4_K_M.gguf" in (out / "Modelfile").read_text()
    shown = capsys.readouterr().out
    assert "greedy answers" in shown and "7/7" in shown
    record = json.loads((out / "export.json").read_text())
    assert [item["type"] for item in record["files"]] == ["f16", "q8_0", "q4_k_m"]
    weights = tiny_llama / "model.safetensors"
    assert record["weights"] == {f"{tiny_llama.name}/{weights.name}": sha256(weights)}
    for file in record["files"]:
        assert file["sha256"] == hashlib.sha256((out / file["file"]).read_bytes()).hexdigest()
        assert file["check"]["conversations"] == 7 and file["both_modes"] is None
        assert {answer["mode"] for answer in file["check"]["answers"]} == {"think", "no_think"}
    exact = record["files"][0]["check"]["answers"]
    assert all(item["agreed"] == item["tokens"] or item["margin"] < 0.1 for item in exact)
    fields = GGUFReader(out / "mine-Q4_K_M.gguf").fields
    assert fields["general.file_type"].contents() == 15
    assert "enable_thinking" in fields["tokenizer.chat_template"].contents()


def test_a_reference_answer_knows_the_lead_of_each_of_its_tokens(tiny_llama: Path) -> None:
    """llama.cpp's server tells none inside a character."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    answer = ask_transformers(str(tiny_llama), tokenizer)[0]
    ids = [*answer.prompt_ids, *answer.answer_ids]
    assert len(answer.leads) == len(answer.answer_ids) + 1
    for place, lead in zip(
        (0, 1, len(answer.answer_ids)), (*answer.leads[:2], answer.leads[-1]), strict=True
    ):
        with torch.inference_mode():
            logits = model(torch.tensor([ids[: len(answer.prompt_ids) + place]])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert lead == pytest.approx(best - second, abs=1e-3)


def test_all_named_templates_of_a_tokenizer_are_written(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    named = {"default": tokenizer.chat_template, "tool_use": tokenizer.chat_template + "{# #}"}
    tokenizer.chat_template = named
    tokenizer.save_pretrained(model)
    export(str(model), tmp_path / "out", types=["f32"], name="x", runtime=None)
    fields = GGUFReader(tmp_path / "out" / "x-F32.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == named["default"]
    assert fields["tokenizer.chat_template.tool_use"].contents() == named["tool_use"]


@needs_runtime
def test_words_that_a_recipe_added_are_read_alike_and_the_difference_is_said(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    words = [NewToken(text="<ticket>"), NewToken(text="Zyklotron")]
    give_rows(model, add_new_tokens(tokenizer, words))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = export(str(tmp_path / "model"), tmp_path / "gguf", types=["f16"], name="mine")
    (file,) = result.files
    assert file.check is not None
    assert file.check.conversations == 8
    assert "llama.cpp reads 'Zyklotron' as a token inside of longer words" in caplog.text


def test_transformers_own_reader_finds_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    export(str(tiny_llama), tmp_path / "out", types=["f32"], name="x", runtime=None)
    ours = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="x-F32.gguf", dtype=torch.float32
    )
    ids = torch.arange(100, 140)[None]
    with torch.inference_mode():
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-4)


def test_an_adapter_is_folded_into_its_base(tiny_llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "adapter")
    fold(tiny_llama, tmp_path / "adapter", tmp_path / "folded")
    files = []
    for name in ("adapter", "folded"):
        source = open_source(str(tmp_path / name), name="x", foreign=False)
        write_exact(source, tmp_path / f"{name}.gguf", "f32", None)
        files.append((tmp_path / f"{name}.gguf").read_bytes())
    assert files[0] == files[1]


@needs_runtime
def test_when_llama_cpp_reads_a_chat_otherwise_nothing_is_written(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama-server gives enable_thinking unasked; this template tells whether it was given."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{{ 'given' if enable_thinking is defined else 'absent' }}<|im_start|>assistant\n"
    )
    folder, out = make("llama", template=template), tmp_path / "out"
    assert main(["export", str(folder), str(out), "--types", "f16"]) == 2
    said = capsys.readouterr().err
    assert "xllamacpp doesn't read or answer as transformers does; nothing was written" in said
    assert "f16: a question becomes another text in llama.cpp, from token" in said
    assert not out.exists() and not list(tmp_path.iterdir())
    assert main(["export", str(folder), str(out), "--types", "f16", "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().out
    assert "TEMPLATE" not in (out / "Modelfile").read_text()


def test_a_dry_run_shows_sizes_and_writes_nothing(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_llama), str(tmp_path / "out"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # (1024 + 4 (64 + 32 + 32 + 64 + 3 * 96)) * 64 numbers at 2 and 34/32 bytes, 9 vectors of 64 at 4
    assert "tiny-llama-F16.gguf, about 0.379 MB" in shown
    assert "tiny-llama-Q8_0.gguf, about 0.202 MB" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("type", ["q8_0", "fp8"])
def test_a_dry_run_refuses_rows_that_nothing_reads(
    type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--type", type, "--calibration", "rows.jsonl", "--dry-run"]
    assert main(["export", "model", str(tmp_path / "out"), *options]) == 2
    assert "no rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--types", "q5_k"],
            "--types: unknown type 'q5_k'; there are f32, f16, bf16, q8_0, q6_k, q5_k_m",
        ),
        (["--types", ","], "--types: expected some of f32"),
        (["--converter", "llama.cpp"], "llama.cpp's converter isn't here: set LLAMA_CPP_DIR"),
    ],
)
def test_what_can_not_be_done_is_said_before_anything_is_written(
    arguments: list[str],
    said: str,
    tiny_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["export", str(tiny_llama), str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_gguf_package_the_message_says_what_to_install(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualign.export.model_source.find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match=r"needs the package gguf: pip install 'dualign\[gguf\]'"
    ):
        export(str(tiny_llama), tmp_path / "out")


def test_answers_fit_eighty_columns() -> None:
    answer = AnswerComparison(
        question=QUESTIONS[1],
        mode="no_think",
        expected="The sea is [wide] " * 9,
        actual="The sea\nis deep",
        tokens=20,
        agreed=3,
        margin=0.5,
        thought=False,
        leaked=False,
    )
    verdict = CheckResult(runtime="xllamacpp", conversations=7, answers=(answer,), faults=())
    file = ExportFile(
        file="x-Q4_K_M.gguf",
        type="q4_k_m",
        bytes=2_500_000_000,
        bits_per_weight=4.96,
        sha256="",
        tensors={},
        error=0.0387,
        check=verdict,
    )
    console = Console(width=80, record=True, file=io.StringIO())
    exact = replace(
        file, file="x-F16.gguf", type="f16", bytes=9_000_000_000, error=None, check=None
    )
    result = ExportResult(
        model="m", weights={}, converter="dualign", fixed_fields=("one",), files=(file,)
    )
    small = replace(file, file="x-Q2_K.gguf", type="q2_k", bytes=1_000_000_000)
    assert closing(replace(result, files=(exact, file, small)), Path("a b")).splitlines() == [
        "f16: not loaded in llama.cpp",
        "q4_k_m: not compared with the model in both modes",
        "q2_k: not compared with the model in both modes",
        "written to a b: x-F16.gguf, x-Q4_K_M.gguf, x-Q2_K.gguf, Modelfile, export.json",
        "next: llama-server -m 'a b/x-Q4_K_M.gguf' --jinja",
        "      cd 'a b' && ollama create mine -f Modelfile",
    ]
    console.print(summary(result))
    shown = console.export_text()
    assert "2.50 GB" in shown and "3.87%" in shown and "0/0" in shown and "3/20" in shown
    assert "The sea is [wide]" in shown and "\u2026" in shown and "The sea is deep" in shown
    assert "corrected: one" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_out_is_a_folder_that_is_not_there_yet(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert main(["export", str(tiny_llama), str(tmp_path)]) == 2
    assert "is there already; choose another folder, or use --force" in capsys.readouterr().err
    assert main(["export", str(tiny_llama), "x.gguf"]) == 2
    assert "x.gguf: OUT is a folder" in capsys.readouterr().err


def test_a_weight_that_float16_can_not_hold_is_named(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 0] = 65520
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"token_embd.weight: element 448 exceeds what F16 holds"
    ):
        export(str(folder), tmp_path / "out", types=["f16"], runtime=None)
    assert not list(tmp_path.iterdir())


def test_a_type_that_is_garbage_without_an_importance_matrix_is_refused(
    make: Make, tmp_path: Path
) -> None:
    folder = make("llama", hidden_size=256, num_hidden_layers=1)
    with pytest.raises(
        ConfigError,
        match=r"iq2_xs needs an importance matrix for blk.0.ffn_gate.weight \(4 tensors\)",
    ):
        export(str(folder), tmp_path / "out", types=["f16", "iq2_xs"], runtime=None)
    assert not list(tmp_path.iterdir())


@needs_runtime
@pytest.mark.slow
def test_each_type_that_needs_no_importance_is_read_by_llama_cpp(
    make: Make, tmp_path: Path
) -> None:
    """Blocks of 256: the narrow types are in the test of the command."""
    folder = make("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=2)
    types = [type for type in TYPES if not type.startswith(("iq1", "iq2", "iq3_x", "q2_k_s"))]
    result = export(str(folder), tmp_path / "out", types=types, name="x")
    assert [file.type for file in result.files] == types
    for file in result.files:
        assert file.check is not None and file.check.conversations == 7, file.type
    sizes = {file.type: file.bytes for file in result.files}
    assert sizes["q2_k"] < sizes["q3_k_s"] < sizes["q4_k_s"] < sizes["q6_k"] < sizes["bf16"]
    assert "FROM ./x-IQ4_XS.gguf" in (tmp_path / "out" / "Modelfile").read_text()


def test_bfloat16_weights_are_written_as_they_are(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    weights = load_file(folder / "model.safetensors")
    # The upper half of a float32 is a bfloat16.
    numbers = {
        name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
        for name, array in weights.items()
    }
    save_file(numbers, folder / "model.safetensors", {"format": "pt"})
    export(str(folder), tmp_path / "out", types=["bf16"], name="x", runtime=None)
    (tensor,) = (
        tensor
        for tensor in GGUFReader(tmp_path / "out" / "x-BF16.gguf").tensors
        if tensor.name == "blk.1.ffn_down.weight"
    )
    assert tensor.tensor_type.name == "BF16"
    stored = numbers["model.layers.1.mlp.down_proj.weight"]
    assert tensor.data.tobytes() == np.ascontiguousarray(stored).view(np.uint16)[:, 1::2].tobytes()


def test_llama_cpp_dir_without_its_converter_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"LLAMA_CPP_DIR=.*: there is no convert_hf_to_gguf.py"
    ):
        find_converter()


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP_DIR" not in os.environ, reason="needs LLAMA_CPP_DIR, a checkout")
@pytest.mark.parametrize("kind", ["llama", "smollm3"])
def test_llama_cpps_converter_writes_the_same_model(
    kind: str, make: Make, embedded: Path, tmp_path: Path
) -> None:
    """`require_same` compares each setting and tensor with ours; it knows the real tokenizer only."""
    rope = YARN if kind == "smollm3" else {"rope_type": "default", "rope_theta": 1e5}
    speech = AutoTokenizer.from_pretrained(embedded)
    folder = make(kind, speech=speech, rope_parameters=rope)
    made = export(str(folder), tmp_path / "out", types=["f16"], converter="llama.cpp", runtime=None)
    assert made.converter.endswith("convert_hf_to_gguf.py")


@needs_runtime
@pytest.mark.slow
def test_the_real_model_answers_alike_in_float16(embedded: Path, tmp_path: Path) -> None:
    made = export(str(embedded), tmp_path / "out", types=["f16"])
    verdict = made.files[0].check
    assert verdict is not None and len(verdict.answers) == 6
    assert sum(answer.tokens for answer in verdict.answers) > 40
    assert all(answer.agreed == answer.tokens for answer in verdict.answers)
