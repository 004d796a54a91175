"""A recipe that can't be right is refused at once, with every mistake, its place, and the nearest right key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dualign.cli.main import main
from dualign.errors import ConfigError
from dualign.other_names import OTHER_NAMES
from dualign.recipe import load_recipe

GOOD = {
    "name": "good",
    "output_dir": "runs/good",
    "stages": [
        {"name": "data", "kind": "script", "script": "make.py"},
        {
            "name": "sft",
            "kind": "sft",
            "model": "embedded:smollm2-135m-instruct",
            "data": {"sources": [{"path": "stage:data/train.jsonl"}], "max_tokens": 128},
            "lora": {"r": 8},
            "train": {"learning_rate": 1e-3, "max_steps": 3},
        },
        {
            "name": "apo",
            "kind": "preference",
            "model": "stage:sft",
            "data": {"sources": [{"path": "stage:data/pairs.jsonl"}], "packing": "none"},
            "lora": {"r": 8},
            "train": {"loss_type": "apo_zero", "beta": 0.1},
        },
        {
            "name": "soup",
            "kind": "merge",
            "models": [{"model": "stage:apo"}, {"model": "stage:sft"}],
        },
        {
            "name": "eval",
            "kind": "eval",
            "models": ["stage:soup"],
            "tasks": ["stage:data/sums.yaml"],
        },
    ],
}


def write(folder: Path, recipe: object, name: str = "recipe.yaml") -> Path:
    (folder / "make.py").write_text("print('hello')\n")
    path = folder / name
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False))
    return path


def changed(keys: str, value: object) -> dict:
    """GOOD with one value set; `keys` as in an override, list places by number."""
    recipe = yaml.safe_load(yaml.safe_dump(GOOD))
    target, *_ = [recipe]
    *path, last = [int(part) if part.isdigit() else part for part in keys.split(".")]
    for part in path:
        target = target[part]
    target[last] = value
    return recipe


def test_a_good_recipe_loads(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), [])
    assert [entry.name for entry in recipe.stages] == ["data", "sft", "apo", "soup", "eval"]
    assert recipe.stage("sft").config.train == {"learning_rate": 1e-3, "max_steps": 3}
    assert {entry.seed for entry in recipe.stages} == {42}


MISTAKES = [
    ("sede", 3, "sede: unknown key (did you mean 'seed'?)"),
    ("seed", "many", "seed: expected a whole number, found 'many'"),
    ("output_dir", None, "needs the key 'output_dir'"),
    ("stages", [], "stages: expected a list of at least one stage"),
    (
        "stages.1.kind",
        "stf",
        "expected one of script, sft, traces, pairs, preference, merge, sweep, eval, found 'stf'",
    ),
    ("stages.1.name", "data", "'data' is the name of an earlier stage"),
    ("stages.1.name", "a/b", "expected letters, digits, - and _"),
    ("stages.1.model", "stage:dta", "no stage 'dta' above this one (did you mean 'data'?)"),
    ("stages.1.model", "stage:apo", "no stage 'apo' above this one"),
    ("stages.1.modle", "x", "modle: unknown key (did you mean 'model'?)"),
    (
        "stages.1.dtype",
        "fp32",
        "dtype: expected one of auto, float32, bfloat16, float16, found 'fp32'",
    ),
    ("stages.1.dtype", 32, "dtype: expected one of"),
    ("stages.1.data", [], "stages[1].data: expected keys with values, found a list"),
    (
        "stages.1.data.max_tokens",
        "long",
        "data.max_tokens: expected a whole number, found 'long' (text)",
    ),
    ("stages.1.data.max_tokens", True, "data.max_tokens: expected a whole number, found True"),
    ("stages.1.data.packing", "ffd", "data.packing: expected one of best_fit, wrapped, none"),
    ("stages.1.data.sources", [{}], "data.sources[0]: needs the key 'path'"),
    ("stages.1.data.sources.0.wieght", 2, "wieght: unknown key (did you mean 'weight'?)"),
    ("stages.1.data.sources.0.path", "rows.jsonl", "'rows.jsonl': no such file (looked in"),
    ("stages.0.script", "nothing.py", "'nothing.py': no such file"),
    ("stages.1.lora.rank", 8, "lora.rank: unknown key"),
    ("stages.1.lora.r", 0, "lora.r: expected a rank of 1 or more, found 0"),
    ("stages.1.lora.target_modules", ["lm_head"], "expected layers other than lm_head"),
    ("stages.1.train.learning_rat", 1, "unknown training argument (did you mean 'learning_rate'?)"),
    ("stages.1.train.learning_rate", "fast", "train.learning_rate: expected float, found 'fast'"),
    ("stages.1.train.learning_rate", -1.0, "train.learning_rate: expected more than 0, found -1.0"),
    (
        "stages.1.train.warmup_ratio",
        0.1,
        "now warmup_steps; a value below 1 is a share of all steps",
    ),
    ("stages.1.train.max_length", 9, "is set by dualign: set data.max_tokens"),
    ("stages.1.train.packing", True, "is set by dualign: set data.packing"),
    ("stages.1.train.lr_scheduler_type", "cosin", "unknown value 'cosin' (did you mean 'cosine'?)"),
    ("stages.1.train.optim", "adam", "unknown value 'adam'"),
    ("stages.1.train.eval_strategy", "steps", "needs data.validation_rows above 0"),
    ("stages.1.train.per_device_train_batch_size", 0, "expected 1 or more, found 0"),
    (
        "stages.1.train.lr_scheduler_kwargs",
        {"min_lr": 1},
        "min_lr: unknown key; linear takes none",
    ),
    ("stages.1.train.lr_scheduler_type", "cosine_with_min_lr", "needs min_lr or min_lr_rate"),
    ("stages.1.train.lr_scheduler_type", "greedy", "greedy follows the validation loss"),
    ("stages.1.train.warmup_steps", -1, "warmup_steps: expected 0 or more, found -1"),
    ("stages.1.train.logging_steps", 1.5, "expected a whole number, or a share of all steps"),
    ("stages.1.train.log_level", "loud", "log_level: unknown value 'loud'"),
    ("stages.1.train.accelerator_config", {"split_batch": True}, "(did you mean 'split_batches'?)"),
    ("stages.1.train.gradient_checkpointing_kwargs", {"reentrant": True}, "'use_reentrant'"),
    ("stages.1.train.dataloader_prefetch_factor", 2, "needs train.dataloader_num_workers of 1"),
    ("stages.1.train.save_strategy", "best", "best needs train.metric_for_best_model"),
    (
        "stages.1.train.metric_for_best_model",
        "accuracy",
        "no such figure of validation: 'accuracy'",
    ),
    ("stages.1.train.optim_args", "rank", "expected name=value, with commas between"),
    ("stages.1.train", {"max_steps": 0, "num_train_epochs": 0}, "expected more than 0, or max_st"),
    ("stages.1.train.loss_type", "apo", "train.loss_type: unknown value 'apo'"),
    ("stages.2.train.eval_strategy", "steps", "needs data.validation_rows above 0"),
    ("stages.2.train.train_sampling_strategy", "group_by_length", "pairs have no length"),
    ("stages.1.train", {"bf16": True, "fp16": True}, "bf16 and fp16 are both on"),
    ("stages.1.save", "both", "save: expected one of adapter, merged"),
    ("stages.2.train.loss_type", "apo_zer", "unknown value 'apo_zer' (did you mean 'apo_zero'?)"),
    ("stages.2.train.loss_type", "dpo", "unknown value 'dpo' (here: sigmoid)"),
    (
        "stages.2.train.loss_type",
        ["sigmoid", ["ipo"]],
        """unknown value "['ipo']" (did you mean """,
    ),
    ("stages.2.train.loss_type", 5, "train.loss_type: expected list[str]"),
    ("stages.2.train.loss_type", "exo_pair", "train.label_smoothing: exo_pair takes its logarithm"),
    ("stages.2.train", {"loss_type": "simpo"}, "train.beta: simpo compares means by token"),
    ("stages.2.train", {"loss_type": "aot", "use_weighting": True}, "aot sorts its batch: remove"),
    ("stages.2.train.ld_alpha", 1.5, "train.ld_alpha: expected 0 to 1, found 1.5"),
    ("stages.2.train.label_smoothing", 0.5, "expected 0 or more, below 0.5, found 0.5"),
    ("stages.2.train.simpo_gamma", "wide", "train.simpo_gamma: expected float, found 'wide'"),
    ("stages.2.train.beta", 0, "train.beta: expected more than 0, found 0"),
    ("stages.2.train.loss_type", [], "train.loss_type: expected a loss, such as apo_zero"),
    ("stages.2.train.loss_weights", [1.0, 2.0], "found 2 weights for 1 losses (apo_zero)"),
    ("stages.2.train.f_divergence_type", "js_divergence", "defined for sigmoid, sigmoid_norm, "),
    ("stages.2.train.f_divergence_type", "js", "unknown value 'js'"),
    ("stages.2.reference", "copy", "with lora the reference is the adapter switched off"),
    ("stages.2.data.packing", "best_fit", "pairs aren't packed: set data.packing: none"),
    ("stages.3.models.0.weight", "half", "models[0].weight: expected a number, found 'half'"),
    ("stages.4.temperature", float("nan"), "temperature: expected a number, found nan"),
    ("stages.4.temperature", "hot", "temperature: expected a number, found 'hot'"),
]


@pytest.mark.parametrize(
    ("keys", "value", "expected"), MISTAKES, ids=[f"{k}={v}" for k, v, _ in MISTAKES]
)
def test_a_mistake_is_refused_with_its_place(
    tmp_path: Path, keys: str, value: object, expected: str
) -> None:
    path = write(tmp_path, changed(keys, value))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, [])
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_impossible_combinations_are_refused(tmp_path: Path) -> None:
    recipe = changed("stages.1.lora", None)
    recipe["stages"][1] |= {"quantization": "nf4", "save": "merged"}
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, recipe), [])
    assert "nf4 weights can't be trained: add lora" in str(caught.value)
    assert "save: only with lora" in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    recipe = changed("sede", 1)
    recipe["stages"][1]["train"]["learning_rat"] = 1
    recipe["stages"][1]["data"]["sources"][0]["wieght"] = 1
    recipe["stages"][4]["kind"] = "evil"
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, recipe), [])
    assert str(caught.value).startswith("4 problems")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"knid": "sft", "modle": "a"}, ["knid: unknown key (did you mean 'kind'?)", "'model'"]),
        ({"kind": "sfft", "modle": "a"}, ["(did you mean 'sft'?)", "'model'"]),
        ({"model": "a", "data": {}, "trian": {}}, ["needs the key 'kind'", "'train'"]),
        ({"reciep": "sft.yaml"}, ["reciep: unknown key (did you mean 'recipe'?)"]),
    ],
)
def test_the_other_keys_of_a_stage_without_a_kind_are_checked_too(
    tmp_path: Path, stage: dict, expected: list[str]
) -> None:
    recipe = {"output_dir": "out", "stages": [{"name": "a", **stage}]}
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, recipe), [])
    assert [part for part in expected if part not in str(caught.value)] == []


def test_a_misspelled_list_of_stages_is_read_all_the_same(tmp_path: Path) -> None:
    recipe = {"output_dir": "out", "stage": [{"name": "a", "kind": "script", "scirpt": "make.py"}]}
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, recipe), [])
    assert "stage: unknown key (did you mean 'stages'?)" in str(caught.value)
    assert "stages[0].scirpt: unknown key (did you mean 'script'?)" in str(caught.value)


def test_a_mistake_names_its_line(tmp_path: Path) -> None:
    text = "name: x\noutput_dir: y\nstages:\n  - name: a\n    kind: script\n    script: make.py\n    arg: {}\n"
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml:7: stages\[0\]\.arg: unknown key \(did you mean 'args'"
    ):
        load_recipe(write(tmp_path, text), [])


@pytest.mark.parametrize(
    "text", ["a: [", "- 1", "a: 1\na: 2\nstages: []"], ids=["broken", "list", "twice"]
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_recipe(write(tmp_path, text), [])


@pytest.mark.parametrize("command", ["run", "plan", "sft", "inspect", "report", "doctor"])
def test_a_refusal_imports_nothing_heavy(tmp_path: Path, command: str) -> None:
    """It takes 0.2 s; torch alone would take ten times as long."""
    path = write(tmp_path, changed("stages.1.train.learning_rat", 1))
    heavy = ("torch", "transformers", "datasets", "trl", "peft", "accelerate", "pandas", "numpy")
    code = (
        "import sys; from dualign.cli.main import main; status = main(sys.argv[1:])\n"
        f"print([name for name in {heavy} if name in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"
    assert "Traceback" not in done.stderr


def test_overrides_reach_stages_lists_and_the_recipe(tmp_path: Path) -> None:
    overrides = [
        "sft.train.learning_rate=5e-4",
        "output_dir=elsewhere",
        "soup.models.0.weight=0.9",
        "seed=7",
    ]
    recipe = load_recipe(write(tmp_path, GOOD), overrides)
    assert recipe.stage("sft").config.train["learning_rate"] == 5e-4
    assert recipe.output_dir == Path("elsewhere")
    assert recipe.stage("soup").config.models[0].weight == 0.9
    assert recipe.stage("soup").seed == 7


def test_overrides_stand_before_and_behind_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, GOOD))
    assert main(["run", file, "sfd.x=1", "--machine-rank", "0", "sfe.x=1"]) == 2
    problems = capsys.readouterr().err
    assert "no stage or key 'sfd'" in problems
    assert "no stage or key 'sfe'" in problems
    with pytest.raises(SystemExit, match="2"):
        main(["run", file, "--machine-rang", "0"])
    assert "unrecognized arguments: --machine-rang" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sfd.train.x=1", "no stage or key 'sfd' (did you mean 'sft'?)"),
        ("sft.train.learning_rat=1", "did you mean 'learning_rate'"),
        ("sft", "expected key.sub=value"),
        ("sft=1", "names a stage"),
        ("soup.models.7.weight=1", "expected an index below 2, found '7'"),
        ("sft.lora.r=x", "lora.r: expected a whole number, found 'x'"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, GOOD), [override])
    assert expected in str(caught.value)


def test_a_stage_recipe_is_a_pipeline_of_one_and_can_be_included(tmp_path: Path) -> None:
    stage = {
        "kind": "script",
        "script": "make.py",
        "output_dir": "runs/x",
        "args": {"rows": 3, "hard": 1},
    }
    write(tmp_path, stage, "data.yaml")
    alone = load_recipe(tmp_path / "data.yaml", ["args.rows=4"])
    assert [entry.name for entry in alone.stages] == ["data"]
    assert alone.stages[0].config.args == {"rows": 4, "hard": 1}
    both = {
        "output_dir": "o",
        "stages": [{"name": "mine", "recipe": "data.yaml", "args": {"rows": 5}}],
    }
    included = load_recipe(write(tmp_path, both), [])
    assert included.stages[0].config.args == {"rows": 5, "hard": 1}
    assert included.stages[0].name == "mine"


@pytest.mark.parametrize(
    ("keys", "value", "here"),
    [
        ("stages.1.learning_rate", 1e-4, "train.learning_rate"),
        ("stages.1.train.lr_scheduler", "cosine", "train.lr_scheduler_type"),
        ("stages.1.train.learning_rate_scheduler", "cosine", "train.lr_scheduler_type"),
        ("stages.1.train.optimizer", "adamw", "train.optim"),
        ("stages.1.micro_batch_size", 2, "train.per_device_train_batch_size"),
        ("stages.1.lora.lora_r", 8, "lora.r"),
        ("stages.1.lora.rank", 8, "lora.r"),
        ("stages.1.lora_target_linear", True, "lora.target_modules"),
        ("stages.1.sequence_len", 2048, "data.max_tokens"),
        ("stages.1.data.cutoff_len", 2048, "data.max_tokens"),
        ("stages.1.load_in_4bit", True, "quantization: nf4"),
        ("stages.1.wandb_project", "x", "train.report_to"),
        ("stages.1.hub_model_id", "x", "dualign publish"),
        ("stages.1.train.embedding_lr", 1e-5, "nowhere: all parameters have one learning rate"),
        ("stages.2.train.pref_beta", 0.1, "train.beta"),
        ("stages.2.train.rpo_alpha", 0.5, "train.loss_type: [sigmoid, sft], train.loss_w"),
        ("stages.2.ref_model", "x", "reference"),
    ],
)
def test_a_key_of_another_tool_is_told_its_name_here(
    tmp_path: Path, keys: str, value: object, here: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, changed(keys, value)), [])
    assert f"{keys.split('.')[-1]}: unknown " in str(caught.value)
    assert f" (here: {here}" in str(caught.value)


def test_the_page_lists_the_names_of_other_tools() -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for here, names in OTHER_NAMES.items():
        shown = here if here.startswith("nowhere") else f"`{here}`"
        listed = ", ".join(f"`{name}`" for name in names.split())
        assert f"| {shown} | {listed} |" in page
    every = " ".join(OTHER_NAMES.values()).split()
    assert len(every) == len(set(every))


def test_a_recipe_or_template_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    from dualign.data.text.template import load_template
    from dualign.errors import TemplateError

    file = tmp_path / "recipe.yaml"
    file.write_bytes("# caf\xe9\nname: latin\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not YAML: 'utf-8' codec"):
        load_recipe(file, [])
    template = tmp_path / "latin.jinja"
    template.write_bytes("{# caf\xe9 #}".encode("latin-1"))
    with pytest.raises(TemplateError, match=r"latin\.jinja': isn't UTF-8"):
        load_template(str(template))
