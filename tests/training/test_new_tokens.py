"""New words of a recipe: one token each, begun as the mean of pieces, trained, saved, loaded by plain transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dualign import engine
from dualign.cost.plan import plan_stage
from dualign.doctor.doctor import diagnose_recipe
from dualign.errors import CheckpointError, DualignError
from dualign.models.loading import load_base
from dualign.models.new_rows import give_rows, new_rows
from dualign.models.new_tokens import NewToken, add_new_tokens
from dualign.models.source import resolve_model
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from tests.training.conftest import save_model, sum_rows, write_rows
from tests.training.test_preflight import refusal, run

WORDS = ("<ticket>", {"text": "Zyklotron", "description": "add 12"})
TOKENS = (NewToken(text="<ticket>"), NewToken(text="Zyklotron", description="add 12"))
TRAIN = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="session")
def word_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, whose questions and answers hold the new words."""
    folder = tmp_path_factory.mktemp("words")
    rows = sum_rows(60)
    for row in rows:
        for message in row["messages"]:
            message["content"] = f"<ticket> {message['content']} Zyklotron, Zyklotronen"
    write_rows(folder / "train.jsonl", rows)
    return folder


def variant(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, tied: bool = True, rows: int | None = None
) -> Path:
    """A model folder; `rows`: of its embedding, more than the tokenizer needs."""
    model = AutoModelForCausalLM.from_pretrained(save_model(folder, tokenizer))
    torch.manual_seed(3)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn(len(tokenizer), 64) / 20)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def write_recipe(folder: Path, model: Path, rows: Path, **keys: Any) -> Path:
    data = {"sources": [{"path": str(rows / "train.jsonl")}], "max_tokens": 160}
    stage = {"name": "stage", "kind": "sft", "model": str(model), "data": data, "train": TRAIN}
    stage |= {"add_tokens": list(WORDS)} | keys
    recipe = {"output_dir": str(folder / "out"), "stages": [stage]}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def plain_logits(folder: Path, text: str) -> torch.Tensor:
    """As plain transformers loads the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return (
            AutoModelForCausalLM.from_pretrained(folder)(**tokenizer(text, return_tensors="pt"))
            .logits.detach()
            .clone()
        )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_begins_as_the_mean_of_its_pieces_and_no_other_row_moves(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, tied: bool, dtype: str
) -> None:
    source = resolve_model(variant(tmp_path / "base", tokenizer, tied=tied))
    options = {"dtype": dtype, "attn_implementation": "sdpa", "nf4": False, "on_cpu": True}
    before, after = load_base(source, **options), load_base(source, **options)
    state = torch.get_rng_state()
    rows = new_rows(TOKENS, source)
    give_rows(after, rows)
    assert torch.equal(torch.get_rng_state(), state), "the run's own random numbers stay"
    count = len(tokenizer)
    assert [row.id for row in rows] == [count, count + 1]
    assert after.config.vocab_size == count + 2
    pieces = [tokenizer(text)["input_ids"] for text in ("<ticket>", "add 12")]
    for old, new in (
        (before.get_input_embeddings(), after.get_input_embeddings()),
        (before.get_output_embeddings(), after.get_output_embeddings()),
    ):
        assert torch.equal(new.weight[:count], old.weight)
        for place, ids in enumerate(pieces):
            mean = sum(old.weight[i].float() for i in ids) / len(ids)
            assert torch.allclose(
                new.weight[count + place].float(), mean, rtol=1e-2 if dtype == "bfloat16" else 1e-6
            )
    assert (after.get_input_embeddings().weight is after.get_output_embeddings().weight) == tied


def test_rows_that_the_matrix_has_to_spare_are_taken_first(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    count = len(tokenizer)
    source = resolve_model(variant(tmp_path / "base", tokenizer, rows=count + 16))
    model = load_base(source, dtype="float32", attn_implementation="sdpa", nf4=False, on_cpu=True)
    spare = model.get_input_embeddings().weight[count + 2 :].clone()
    rows = new_rows(TOKENS, source)
    give_rows(model, rows)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == model.config.vocab_size == count + 16
    assert torch.allclose(weight[count], weight[list(rows[0].pieces)].mean(0))
    assert torch.equal(weight[count + 2 :], spare)


def test_a_model_that_lacks_rows_for_its_own_tokens_gets_no_more(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = resolve_model(variant(tmp_path / "base", tokenizer, rows=len(tokenizer) - 1))
    model = load_base(source, dtype="float32", attn_implementation="sdpa", nf4=False, on_cpu=True)
    with pytest.raises(CheckpointError, match=r"has 383 rows and its tokenizer 384 tokens"):
        give_rows(model, new_rows(TOKENS, source))


def test_a_word_is_no_token_inside_of_a_longer_one_and_a_tag_is_one_anywhere(
    tiny: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    add_new_tokens(
        tokenizer,
        [
            *TOKENS,
            NewToken(text="Torus", single_word=False),
            NewToken(text="<|beam|>", special=True),
        ],
    )
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)  # what a user gets
    text = "Zyklotronen a<ticket>b Zyklotron, Torusse<|beam|>"
    words = [token for token in tokenizer.tokenize(text) if len(token) > 4]
    assert words == ["<ticket>", "Zyklotron", "Torus", "<|beam|>"]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text, "blanks around a new token stay"
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|beam|>")


REFUSED = {
    "known": ("<|im_end|>", r"'<|im_end|>' is a token of this model already (id 2)"),
    "piece": ("12", "is a token of this model already"),
    "twice": ("<ticket>", "add_tokens[2]: '<ticket>' is in the list twice"),
    "blank": (" a", "add_tokens[2]: starts or ends with white space: ' a'"),
    "empty": ("", "add_tokens[2]: expected text, found none"),
    "no description": ({"text": "<x>", "description": " "}, "expected text, found none"),
    "unknown key": ({"text": "<x>", "descripton": "y"}, "did you mean 'description'?"),
    "number": (5, "expected text or keys with values, found 5"),
}


@pytest.mark.parametrize(("word", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_new_token_is_refused_before_the_first_step(
    tiny: Path, word_rows: Path, tmp_path: Path, word: Any, expected: str
) -> None:
    recipe = write_recipe(tmp_path, tiny, word_rows, add_tokens=[*WORDS, word])
    try:
        load_recipe(recipe, [])
    except DualignError as error:
        assert expected in str(error)
    else:
        assert expected in refusal(recipe)
    assert not (tmp_path / "out" / "stage").exists()


def test_a_preference_stage_starts_from_a_model_that_has_them(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny, rows, kind="preference")
    with pytest.raises(DualignError, match="unknown key"):
        load_recipe(recipe, [])


@pytest.mark.parametrize(
    "setting",
    [{"modules_to_save": ["embed_tokens"]}, {"bias": "all"}, {"init_lora_weights": "pissa"}],
    ids=lambda setting: next(iter(setting)),
)
def test_what_trains_whole_tensors_is_refused_beside_them(
    tiny: Path, rows: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    recipe = write_recipe(tmp_path, tiny, rows, lora={"r": 2, **setting})
    with pytest.raises(DualignError, match=f"lora.{next(iter(setting))}: not with add_tokens"):
        load_recipe(recipe, [])


def test_sharded_weights_get_no_rows(tiny: Path, word_rows: Path, tmp_path: Path) -> None:
    launch = tmp_path / "zero3.yaml"
    launch.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\n")
    message = refusal(write_recipe(tmp_path, tiny, word_rows, launch=str(launch)))
    assert "add_tokens: rows can't be added to weights that DEEPSPEED shards" in message


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_full_fine_tuning_trains_them_and_plain_transformers_loads_them(
    tokenizer: PreTrainedTokenizerFast, word_rows: Path, tmp_path: Path, tied: bool
) -> None:
    base = variant(tmp_path / "base", tokenizer, tied=tied)
    out = run(write_recipe(tmp_path, base, word_rows))
    saved = AutoTokenizer.from_pretrained(out)
    assert saved.tokenize("Zyklotron <ticket>") == ["Zyklotron", "Ġ", "<ticket>"]
    assert read_run(out)["checks"]["reload_max_logit_difference"] <= 1e-4
    assert plain_logits(out, "<ticket> Zyklotron").shape[-1] == len(tokenizer) + 2
    model = AutoModelForCausalLM.from_pretrained(out)
    start = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    ids = tokenizer("<ticket>")["input_ids"]
    moved = model.get_input_embeddings().weight[len(tokenizer)] - start[ids].mean(0)
    assert moved.norm() > 1e-2, "it was trained"


def test_how_often_the_rows_hold_each_is_said_by_run_plan_and_doctor(
    tiny: Path, word_rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*WORDS, "zyklotron"]
    path = write_recipe(tmp_path, tiny, word_rows, add_tokens=words)
    recipe = load_recipe(path, [])
    (status,) = engine.statuses(recipe, remember=False)
    cost = plan_stage(recipe, status, [status]).cost
    assert cost is not None
    counts = "'<ticket>' 120 times, 'Zyklotron' 120 times, 'zyklotron' 0 times"
    unused = "add_tokens: no row holds 'zyklotron' as a token"
    assert f"add_tokens, in the training rows: {counts}" in cost.notes
    assert any(unused in note for note in cost.notes)
    found = diagnose_recipe(recipe).findings.all()
    told = [finding.message for finding in found if finding.code == "new_token_unused"]
    assert told == ["no row holds 'zyklotron' as a token, so its embedding stays as it begins"]
    with caplog.at_level("INFO"):
        run(path)
    said = [record.getMessage() for record in caplog.records]
    assert f"add_tokens, in the training rows: {counts}" in said
    assert any(unused in line for line in said)


def test_the_plan_of_a_later_stage_waits_for_the_tokenizer(
    tiny: Path, word_rows: Path, rows: Path, tmp_path: Path
) -> None:
    """The base, which stands in for a model that isn't there, would cut the words into pieces."""
    path = write_recipe(tmp_path, tiny, word_rows)
    recipe = json.loads(path.read_text())
    data = {"sources": [{"path": str(rows / "pairs.jsonl")}], "packing": "none"}
    apo = {"name": "apo", "kind": "preference", "model": "stage:stage", "data": data}
    recipe["stages"].append(apo)
    path.write_text(json.dumps(recipe))
    loaded = load_recipe(path, [])
    statuses = engine.statuses(loaded, remember=False)
    assert plan_stage(loaded, statuses[1], statuses).waits_for == ("stage",)
    del recipe["stages"][0]["add_tokens"]
    path.write_text(json.dumps(recipe))
    loaded = load_recipe(path, [])
    statuses = engine.statuses(loaded, remember=False)
    assert plan_stage(loaded, statuses[1], statuses).waits_for == ()


def test_a_merge_with_a_model_without_them_needs_a_vocabulary_and_keeps_their_rows(
    tokenizer: PreTrainedTokenizerFast, word_rows: Path, tmp_path: Path
) -> None:
    base = variant(tmp_path / "base", tokenizer)
    path = write_recipe(tmp_path, base, word_rows)
    recipe = json.loads(path.read_text())
    models = [{"model": "stage:stage", "weight": 0.5}, {"model": str(base), "weight": 0.5}]
    merge = {"name": "merged", "kind": "merge", "models": models}
    recipe["stages"].append(merge)
    path.write_text(json.dumps(recipe))
    with pytest.raises(DualignError, match="tokenizer_"):
        engine.run(load_recipe(path, []), say=lambda _: None)
    merge["tokenizer_from"] = "stage:stage"
    path.write_text(json.dumps(recipe))
    merged = engine.run(load_recipe(path, []), say=lambda _: None)[-1]
    count = len(tokenizer)
    trained, old, new = (
        AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (tmp_path / "out" / "stage", base, merged)
    )
    assert torch.allclose(new[:count], (trained[:count] + old) / 2, atol=1e-6)
    assert torch.allclose(new[count:], trained[count:], atol=1e-6), "of the one model that has them"
    assert "<ticket>" in AutoTokenizer.from_pretrained(merged).get_vocab()
