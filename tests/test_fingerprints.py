"""Fingerprints as the first releases computed them: a finished run is still skipped by today's code.

The hex values were computed with the code of commit 1f23fb7, before stages and rooms were named anew. A value that
changes here means that every user's finished stages of that kind run again. Nothing in the recipe depends on the
version of a package.
"""

from pathlib import Path

import yaml

from dualign import engine
from dualign.recipe import load_recipe
from dualign.stages import STAGE_KINDS

FINGERPRINTS = {
    "script": "d4ec89a43620cf486a6b6721e20dc2bb4e2d23f50233e41f9e8dcd0d2c237f3d",
    "sft": "85071fb910269287d46245faacdeabfd558ac39e3d9eb97ea03da91c5bbc9a77",
    "traces": "d5464cbeb9e9988ee76348cf97b74951d7585e92b1fb79b462889040577b5214",
    "pairs": "067d27592a156563b169eb5b72c5d47929cf9a13a039ab1c45e0017b7795723e",
    "preference": "98a303ab5269302d07433a95149d72d12cbdae5dc4a1a0a88b9ae22b5439df70",
    "merge": "3ca38704e9ffdee0784e408c65e0cee29c8a4e106b8fb9b78be37c90ab38c144",
    "sweep": "2a6bc6b8f023da2b96a7dbbf2d21cc5e7a943107318b500d999df3062c4d65ce",
    "eval": "b0c99cceb34539005a02d23ac4b429b3685a39a072d18e7e6da5b68d24ce3084",
}

TASK = """\
name: sums
verifier: integer
rows: sums.jsonl
"""

RECIPE = {
    "name": "fingerprints",
    "seed": 7,
    "stages": [
        {
            "name": "data",
            "kind": "script",
            "script": "make.py",
            "args": {"rows": 3, "text": "hello"},
            "files": ["words.txt"],
        },
        {
            "name": "sft",
            "kind": "sft",
            "seed": 11,
            "model": "base",
            "template": "mine.jinja",
            "template_kwargs": {"date": "2024-01-01"},
            "data": {
                "sources": [
                    {"path": "stage:data/train.jsonl", "weight": 0.5},
                    {"path": "rows.jsonl", "mode": "no_think", "on_fault": {"any": "drop"}},
                ],
                "dedup": {"method": "minhash"},
                "decontaminate": {"tasks": ["sums.yaml"]},
                "mix": {"think": 0.25, "no_think": 0.75},
                "validation_rows": 2,
                "max_tokens": 128,
            },
            "lora": {"r": 4},
            "launch": "zero3.yaml",
            "train": {"learning_rate": 1e-3, "max_steps": 3},
        },
        {
            "name": "traces",
            "kind": "traces",
            "model": "stage:sft",
            "data": {"sources": [{"path": "stage:data/questions.jsonl"}]},
            "verifier": {"kind": "contains", "need": "any"},
            "tries": 2,
        },
        {
            "name": "pairs",
            "kind": "pairs",
            "model": "stage:sft",
            "rejected_model": "owner/model",
            "tasks": ["sums.yaml"],
            "samples": 2,
        },
        {
            "name": "apo",
            "kind": "preference",
            "model": "stage:sft/adapter",
            "data": {"sources": [{"path": "stage:pairs/pairs.jsonl"}], "packing": "none"},
            "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            "train": {"loss_type": "apo_zero", "beta": 0.05},
        },
        {
            "name": "soup",
            "kind": "merge",
            "method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": "stage:apo", "weight": 0.9}, {"model": "owner/model"}],
            "dtype": "bfloat16",
        },
        {
            "name": "sweep",
            "kind": "sweep",
            "merge": {
                "models": [
                    {"model": "stage:apo", "weight": "$a"},
                    {"model": "base", "weight": "1 - $a"},
                ]
            },
            "vary": {"a": [0.7, 0.9]},
            "score": {"tasks": ["sums.yaml"], "rows": 4},
        },
        {
            "name": "eval",
            "kind": "eval",
            "models": ["base", "stage:soup", "stage:sweep"],
            "tasks": ["sums.yaml"],
            "pairs": ["stage:pairs/pairs.jsonl"],
            "rows": 5,
        },
    ],
}
FILES = {
    "make.py": "print('hello')\n",
    "words.txt": "a\nb\n",
    "mine.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "rows.jsonl": '{"text": "one"}\n',
    "sums.yaml": TASK,
    "sums.jsonl": '{"prompt": "1 + 1", "answer": "2"}\n',
    "zero3.yaml": "distributed_type: DEEPSPEED\n",
    "base/config.json": '{"model_type": "llama"}',
    "base/model.safetensors": "weights",
    "base/.hidden": "no part of it",
}


def fingerprints(folder: Path, *overrides: str, files: dict[str, str] = FILES) -> dict[str, str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(folder / "out")}, sort_keys=False))
    recipe = load_recipe(path, overrides)
    return {status.entry.kind: status.fingerprint for status in engine.statuses(recipe)}


def test_every_kind_of_stage_has_the_fingerprint_that_it_always_had(tmp_path: Path) -> None:
    assert {entry["kind"] for entry in RECIPE["stages"]} == {kind.name for kind in STAGE_KINDS}
    assert fingerprints(tmp_path) == FINGERPRINTS


def test_fingerprints_do_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    folder = tmp_path / "deeper" / "down"
    folder.mkdir(parents=True)
    assert fingerprints(folder) == FINGERPRINTS


def test_how_a_stage_is_started_is_no_part_of_its_fingerprint(tmp_path: Path) -> None:
    assert fingerprints(tmp_path, "sft.launch=null", "sft.data.num_proc=2") == FINGERPRINTS
    keys = "sft.launch={config_file: rows.jsonl, max_restarts: 2}"
    assert fingerprints(tmp_path, keys) == FINGERPRINTS
    assert fingerprints(tmp_path, "sft.tiled_mlp=true") == FINGERPRINTS
    assert fingerprints(tmp_path, "sft.async_checkpoints=true") == FINGERPRINTS
    assert fingerprints(tmp_path, "sft.data.max_tokens=64") != FINGERPRINTS


def test_columns_of_a_source_are_part_of_the_fingerprint_once_they_are_given(
    tmp_path: Path,
) -> None:
    assert fingerprints(tmp_path, "sft.data.sources.0.columns={}") == FINGERPRINTS
    mapped = fingerprints(tmp_path, "sft.data.sources.0.columns={text: body}")
    assert mapped["sft"] != FINGERPRINTS["sft"] and mapped["script"] == FINGERPRINTS["script"]


def test_a_file_of_a_tasks_verifier_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    verifier = "verifier: {kind: json_schema, schema: s.json}"
    files = {**FILES, "sums.yaml": TASK.replace("verifier: integer", verifier), "s.json": "{}"}
    before = fingerprints(tmp_path, files=files)
    after = fingerprints(tmp_path, files=files | {"s.json": '{"type": "integer"}'})
    assert {kind for kind, value in after.items() if value == before[kind]} == {"script"}
    files["sums.yaml"] = files["sums.yaml"].replace(
        "json_schema, schema: s.json", "python, file: f.py"
    )
    changed = [fingerprints(tmp_path, files=files | {"f.py": text})["eval"] for text in ("a", "b")]
    assert len(set(changed)) == 2


def test_a_file_of_a_stages_verifier_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    keys = f"traces.verifier={{kind: json_schema, schema: {tmp_path / 's.json'}}}"
    before = fingerprints(tmp_path, keys, files={**FILES, "s.json": "{}"})
    after = fingerprints(tmp_path, keys, files={**FILES, "s.json": '{"type": "integer"}'})
    assert {kind for kind, value in after.items() if value != before[kind]} == {"traces"}


def test_the_types_by_device_count_as_the_default_before_them(tmp_path: Path) -> None:
    """`auto` came in place of float32: what was finished then stays finished, `dtype: float32` as well."""
    assert fingerprints(tmp_path, "sft.dtype=auto", "apo.dtype=float32") == FINGERPRINTS
    other = fingerprints(tmp_path, "sft.dtype=bfloat16")
    assert other["sft"] != FINGERPRINTS["sft"]


def test_a_greedy_no_think_mode_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """0 isn't null here: with temperature alone, no_think would be sampled as well."""
    assert fingerprints(tmp_path, "eval.temperature_no_think=null") == FINGERPRINTS
    warm = fingerprints(tmp_path, "eval.temperature=0.6")
    mixed = fingerprints(tmp_path, "eval.temperature=0.6", "eval.temperature_no_think=0.0")
    assert len({FINGERPRINTS["eval"], warm["eval"], mixed["eval"]}) == 3
    several = fingerprints(tmp_path, "eval.temperature=0.6", "eval.samples=4")
    assert several["eval"] != warm["eval"]
