"""Files in the form of TRL's scripts and of alignment-handbook: what becomes of their keys, and their rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualign.cli.main import main
from dualign.config import read_yaml
from dualign.data.rows.sources import to_pair
from dualign.errors import ConfigError
from dualign.importing.importing import import_recipe
from dualign.importing.tables import read_table
from dualign.training.arguments import DPO_ARGUMENTS, SFT_ARGUMENTS
from dualign.training.parallelism import parallelism
from dualign.training.source import annotated, classes

from .reading import brought, says, sizes

FILES = Path(__file__).parent / "trl"
SMALL: dict[str, Any] = {
    "model_name_or_path": "Qwen/Qwen3-1.7B",
    "dataset_name": "me/rows",
    "max_length": 512,
}
INSTALLED = (
    ("transformers", "training_args.py"),
    ("trl", "trainer/base_config.py"),
    ("trl", "trainer/sft_config.py"),
    ("trl", "trainer/dpo_config.py"),
    ("trl", "trainer/kto_config.py"),
    ("trl", "trainer/model_config.py"),
    ("trl", "scripts/utils.py"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a user: recipes, rows, an accelerate file."""
    return Path(shutil.copytree(FILES, tmp_path / "theirs"))


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **keys}, sort_keys=False))
    return path


def test_every_field_of_the_installed_configs_has_a_row_or_is_an_argument() -> None:
    rows, arguments = read_table("trl").rows, SFT_ARGUMENTS.names() | DPO_ARGUMENTS.names()
    lost = []
    for package, file in INSTALLED:
        for node in classes(package, file):
            if node.name.endswith(("Arguments", "Config")):
                inside = "datasets[]." if node.name == "DatasetConfig" else ""
                lost += [
                    f"{node.name}.{name}"
                    for name in annotated(node)
                    if not name.startswith("_")
                    and f"{inside}{name}" not in rows
                    and name not in arguments
                ]
    assert not lost


def test_an_sft_recipe_of_the_handbook_with_a_mixture(folder: Path) -> None:
    imported, stage = brought(folder / "smollm3_sft.yaml")
    assert sizes(imported) == [38, 13, 1]
    assert [note.key for note in imported.list_of("refused")] == ["overwrite_output_dir"]
    assert (stage.revision, stage.dtype) == ("it-mid-training", "auto")
    assert "rounds most of each update away" in says(imported, "torch_dtype")[1]
    first, second = stage.data.sources
    assert (first.name, first.split, first.weight) == ("SFT", "OpenHermes_2.5_no_think", 0.5)
    assert (second.split, second.weight) == ("s1k_1.1_think", None)
    data = stage.data
    assert (data.validation_rows, data.max_tokens, data.packing) == (1000, 65536, "best_fit")
    assert data.supervise == "assistant"
    theirs = read_yaml(folder / "smollm3_sft.yaml").value["chat_template"]
    assert Path(stage.template).read_text() == f"{theirs}\n"
    assert stage.train["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}


def test_a_preference_recipe_of_the_handbook_with_its_launcher(folder: Path) -> None:
    imported, stage = brought(folder / "zephyr_dpo.yaml", launch=folder / "zero3.yaml")
    assert sizes(imported) == [31, 5, 1]
    assert [note.key for note in imported.list_of("refused")] == ["max_prompt_length"]
    assert (stage.train["loss_type"], stage.train["beta"]) == ("sigmoid", 0.01)
    sources = [(source.path, source.weight, source.validation) for source in stage.data.sources]
    ultrafeedback = "HuggingFaceH4/ultrafeedback_binarized"
    assert sources == [
        (ultrafeedback, None, False),
        (ultrafeedback, None, True),
        ("me/more_pairs", 0.25, False),
        ("me/more_pairs", None, True),
    ]
    spread = parallelism(stage.launch)
    assert (spread.processes, spread.engine, spread.zero_stage) == (8, "DEEPSPEED", 3)
    assert "8 processes" in says(imported, "(launch)")[1]


def test_a_qlora_recipe_of_trls_script(folder: Path) -> None:
    imported, stage = brought(folder / "qlora_sft.yaml")
    assert sizes(imported) == [24, 6, 0]
    assert (stage.quantization, stage.dtype, stage.lora.lora_dropout) == ("nf4", "bfloat16", 0.05)
    assert stage.data.packing == "wrapped"
    assert [source.split for source in stage.data.sources] == ["train_sft", "test_sft"]
    assert "TRL then learns every token" in says(imported, "assistant_only_loss")[1]
    assert "processes x 4 x 2 rows" in says(imported, "gradient_accumulation_steps")[1]
    assert stage.train["neftune_noise_alpha"] == 5


def test_a_text_field_has_no_effect_on_conversations(folder: Path) -> None:
    """As in TRL: a column of text alone stopped a run on rows of messages."""
    rows = folder / "turns.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "1 + 1?"}]}\n')
    imported, stage = brought(
        written(folder, dataset_name="turns.jsonl", dataset_text_field="text", packing=True)
    )
    assert says(imported, "dataset_text_field")[0] == "carried"
    assert not stage.data.sources[0].columns
    rows.write_text('{"text": "one and one is two"}\n')
    imported, stage = brought(
        written(folder, dataset_name="turns.jsonl", dataset_text_field="text", packing=True)
    )
    assert stage.data.sources[0].columns == {"text": "text"}
    imported, stage = brought(written(folder, dataset_text_field="text", packing=True))
    action, text = says(imported, "dataset_text_field")
    assert action == "changed" and "take its columns out" in text, "rows of the Hub aren't seen"


def test_simpo_of_cpos_script_keeps_its_likelihood_and_its_rows(folder: Path) -> None:
    imported, stage = brought(folder / "simpo.yaml")
    assert sizes(imported) == [12, 6, 1]
    assert stage.train["loss_type"] == ["simpo", "sft"]
    assert stage.train["loss_weights"] == [1.0, 0.1]
    local, other = stage.data.sources
    assert (local.share, other.share) == (0.666667, None)
    row = json.loads(Path(local.path).read_text())
    pair = to_pair(row, source=local, index=0)
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("4", "5")


@pytest.mark.slow
def test_the_imported_recipe_plans(
    folder: Path, shrunk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = folder / "simpo.yaml", folder / "mine.yaml"
    text = file.read_text().replace("Qwen/Qwen3-1.7B", str(shrunk))
    file.write_text(text.replace("  - path: me/other_pairs\n    fraction: 1\n", ""))
    assert main(["import", str(file), "--out", str(out)]) == 0
    assert main(["plan", str(out)]) == 0
    assert "preference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "name", "kind"),
    [
        ({"packing": True}, "a.yaml", "sft"),
        ({"loss_type": "apo_zero"}, "a.yaml", "preference"),
        ({"loss_type": ["sigmoid", "bco_pair", "sft"]}, "a.yaml", "preference"),
        ({"loss_type": "dft"}, "a.yaml", "sft"),
        ({"beta": 0.1}, "a.yaml", "preference"),
        ({}, "sft.yaml", "sft"),
        ({}, "run-dpo.yaml", "preference"),
    ],
)
def test_the_script_is_told_by_keys_and_path(
    folder: Path, keys: dict[str, Any], name: str, kind: str
) -> None:
    place = folder / "plain" / "runs" / "one" / "two"
    place.mkdir(parents=True)
    path = written(folder, **keys).rename(place / name)
    _, stage = brought(path)
    assert stage.kind == kind


def test_weights_are_of_the_type_that_trls_scripts_load_them_in(folder: Path) -> None:
    assert brought(written(folder, packing=True))[1].dtype == "float32"
    assert brought(written(folder, packing=True, dtype="auto"))[1].dtype == "auto"
    quantized = written(folder, packing=True, use_peft=True, load_in_4bit=True)
    assert brought(quantized)[1].dtype == "auto"


def test_orpo_is_told_by_the_path_alone(folder: Path) -> None:
    (folder / "orpo").mkdir()
    path = written(folder, beta=0.05, max_prompt_length=128).rename(folder / "orpo" / "config.yaml")
    imported, stage = brought(path)
    assert stage.train["loss_type"] == "orpo"
    assert "orpo.py" in says(imported, "(script)")[1]


def test_an_unclear_script_is_asked_for(folder: Path) -> None:
    place = folder / "plain" / "runs" / "one" / "two"
    place.mkdir(parents=True)
    path = written(folder).rename(place / "config.yaml")
    with pytest.raises(ConfigError, match="add --script with one of sft, dpo, kto, orpo, cpo"):
        import_recipe(path)
    imported, stage = brought(path, script="kto")
    assert stage.train["loss_type"] == "kto"
    assert says(imported, "(script)")[1] == "said by --script"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_generations": 8}, "num_generations: is of GRPO, which isn't there"),
        ({"model_name_or_path": None, "packing": True}, "model_name_or_path: isn't there"),
        ({"dataset_name": None, "packing": True}, "none is there; a recipe needs the data"),
    ],
)
def test_what_can_be_no_recipe_says_why(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        import_recipe(written(folder, **{"use_peft": False, **keys}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"assistant_only_loss": True}, "assistant"),
        ({"assistant_only_loss": False}, "all"),
        ({"completion_only_loss": True}, "last"),
        ({"completion_only_loss": False}, "all"),
        ({"packing": False}, "assistant"),
    ],
)
def test_masks_are_what_the_file_says(folder: Path, keys: dict[str, Any], expected: str) -> None:
    brought_over, stage = brought(written(folder, **keys))
    assert stage.data.supervise == expected
    if expected == "last":
        (note,) = [n for n in brought_over.notes if n.key == "completion_only_loss"]
        assert "of rows of messages TRL takes no notice of the key" in note.says


@pytest.mark.parametrize(
    ("keys", "loss", "weights"),
    [
        ({"loss_type": "kto_pair"}, "bco_pair", None),
        ({"loss_type": "sigmoid", "rpo_alpha": 0.5}, ["sigmoid", "sft"], [1.0, 0.5]),
        ({"loss_type": "sigmoid", "label_smoothing": 0.1, "beta": 0.1}, "robust", None),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]},
            ["sigmoid", "sft"],
            [0.8, 0.2],
        ),
        ({"precompute_ref_log_probs": True}, "sigmoid", None),
    ],
)
def test_losses_have_their_names_here(
    folder: Path, keys: dict[str, Any], loss: Any, weights: Any
) -> None:
    _, stage = brought(written(folder, **keys), script="dpo")
    assert stage.train["loss_type"] == loss
    assert stage.train.get("loss_weights") == weights
    assert stage.reference == ("cached" if "precompute_ref_log_probs" in keys else "auto")


def test_a_template_of_a_folder_is_its_file(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    _, stage = brought(written(folder, chat_template_path="tokenizer"))
    assert Path(stage.template).samefile(folder / "tokenizer" / "chat_template.jinja")
    imported, stage = brought(written(folder, chat_template_path="owner/name"))
    assert stage.template == "tokenizer"
    assert "isn't a .jinja file that is here" in says(imported, "chat_template_path")[1]


def test_a_file_that_is_no_launcher_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="isn't an accelerate file: expected distributed_type"):
        import_recipe(folder / "zephyr_dpo.yaml", launch=folder / "simpo.yaml")


@pytest.mark.parametrize("script", ["sft", "dpo"])
@pytest.mark.parametrize("value", [False, 3, "x", None, ["a"]])
def test_a_file_with_every_key_loses_none(folder: Path, value: Any, script: str) -> None:
    """Values of any kind make no traceback, and each key has one note."""
    keys = [key for key in read_table("trl").rows if "." not in key and key not in SMALL]
    less = {"datasets", "dataset_mixture", "dataset_mixer"}
    path = written(folder, **{key: value for key in keys if key not in less})
    imported = import_recipe(path, script=script)
    noted = [note.key for note in imported.notes if note.line]
    assert sorted(noted) == sorted([*SMALL, *(key for key in keys if key not in less)])
