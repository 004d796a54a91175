"""How models rank preference pairs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dualign.data.config import SourceConfig
from dualign.errors import ConfigError, DataError, TemplateError
from dualign.evaluation import evaluate
from dualign.evaluation.config import EvalStage
from dualign.evaluation.pairs import margin_change, pair_margins, summarize_margins
from dualign.models import loading
from dualign.models.loading import open_model
from dualign.recipe import load_recipe
from tests.chat_model import LEARNT, make_model, prompt
from tests.data.text import families


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model has learnt against another answer, in both modes."""
    rows = []
    for question, (thought, right, quick) in LEARNT.items():
        asked = [{"role": "user", "content": f"What is {question}?"}]
        for mode, answer in (("think", right), ("no_think", quick)):
            trace = {"reasoning_content": thought} if mode == "think" else {}
            chosen = {"role": "assistant", "content": answer, **trace}
            rejected = {"role": "assistant", "content": "0, I suppose", **trace}
            rows.append({"prompt": asked, "chosen": [chosen], "rejected": [rejected], "mode": mode})
    file = tmp_path_factory.mktemp("pairs") / "heldout.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_margins_are_those_of_each_answer_scored_alone(learnt: Path, pairs_file: Path) -> None:
    found = pair_margins(open_model(str(learnt)), [str(pairs_file)])["heldout"]
    tokenizer = AutoTokenizer.from_pretrained(learnt)
    model = AutoModelForCausalLM.from_pretrained(learnt).eval()

    def logp(question: str, mode: str, said: str) -> float:
        start = tokenizer(prompt(tokenizer, question, mode), add_special_tokens=False).input_ids
        answer = tokenizer(said + "<|im_end|>", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([start + answer])).logits[0].log_softmax(-1)
        return sum(float(logits[len(start) + i - 1, token]) for i, token in enumerate(answer))

    for mode in ("think", "no_think"):
        wanted = []
        for question, (thought, right, quick) in LEARNT.items():
            head = f"{thought}\n</think>\n\n" if mode == "think" else ""
            asked = f"What is {question}?"
            chosen = logp(asked, mode, head + (right if mode == "think" else quick))
            wanted.append(chosen - logp(asked, mode, head + "0, I suppose"))
        assert sorted(found[mode]) == pytest.approx(sorted(wanted), rel=1e-4)


def test_a_model_without_modes_ranks_pairs_of_both_where_it_may(
    learnt: Path, pairs_file: Path
) -> None:
    subject = open_model(str(learnt))
    subject.tokenizer.chat_template = families.PLAIN
    with pytest.raises(TemplateError, match="asks both in one way"):
        pair_margins(subject, [str(pairs_file)])
    margins = pair_margins(subject, [str(pairs_file)], any_modes=True)["heldout"]
    assert {mode: len(values) for mode, values in margins.items()} == {"think": 4, "no_think": 4}


def test_pairs_of_other_names_have_the_same_margins(
    learnt: Path, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text(encoding="utf-8").splitlines()]
    names = {"prompt": "asked", "chosen": "good", "rejected": "bad", "mode": "mode"}
    renamed = [{names[name]: value for name, value in row.items()} for row in rows]
    file = tmp_path / "renamed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in renamed), encoding="utf-8")
    columns = {"prompt": "asked", "chosen": "good", "rejected": "bad"}
    source = SourceConfig(path=str(file), columns=columns, label="mine")
    margins = pair_margins(open_model(str(learnt)), [str(pairs_file), source])
    assert margins["mine"] == margins["heldout"]


def test_pairs_of_a_recipe_are_files_or_sources(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("name: t\nrows: t.jsonl\nverifier: exact\n")
    (tmp_path / "p.jsonl").write_text("{}\n")
    path = tmp_path / "r.yaml"
    recipe = (
        "name: r\noutput_dir: out\nstages:\n  - {name: e, kind: eval, models: [base], tasks: [t.yaml],"
        " pairs: [q.txt, {path: p.jsonl, columns: {COLUMNS}}]}\n"
    )
    path.write_text(recipe.replace("COLUMNS", "prompt: asked"))
    text, source = load_recipe(path, ()).stage("e").config.pairs
    assert (text, source.path) == ("q.txt", str(tmp_path / "p.jsonl"))
    path.write_text(recipe.replace("COLUMNS", "promt: asked"))
    with pytest.raises(ConfigError, match=r"pairs\[1\].columns.promt: .*did you mean 'prompt'"):
        load_recipe(path, ())


def test_an_evaluation_says_how_much_a_model_gained_in_ranking(
    learnt: Path,
    task_file: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untaught, tokenizer = tmp_path / "untaught", AutoTokenizer.from_pretrained(learnt)
    make_model(tokenizer, seed=3).save_pretrained(untaught)
    tokenizer.save_pretrained(untaught)
    stage = EvalStage(
        name="eval",
        models=(str(untaught), str(learnt)),
        tasks=(str(task_file),),
        pairs=(str(pairs_file),),
        max_new_tokens=20,
    )
    loaded: list[str] = []
    real = loading.load_model

    def counting(reference: str, *, dtype: str = "auto") -> PreTrainedModel:
        loaded.append(reference)
        return real(reference, dtype=dtype)

    monkeypatch.setattr(loading, "load_model", counting)
    evaluate.run(stage, tmp_path / "out", seed=0)
    assert loaded == [str(untaught), str(learnt)], "once, for its answers and its margins"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    cell = metrics["pairs"]["heldout"]["think"]
    assert (cell["n"], cell["accuracy"]) == (4, 1.0)
    assert cell["margin_ci"][0] < cell["margin"] < cell["margin_ci"][1]
    rises = {change["mode"]: change for change in metrics["pair_changes"]}
    before = metrics["all"][0]["pairs"]["heldout"]["think"]["margin"]
    assert rises["think"]["value"] == pytest.approx(cell["margin"] - before)
    assert "chosen preferred" in capsys.readouterr().out
    assert "## Preference pairs" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_the_interval_of_a_change_is_of_the_pairs_own_differences() -> None:
    change = margin_change([1.0, 5.0, -3.0], [2.0, 6.5, -2.5])
    assert change is not None and change.value == pytest.approx(1.0)
    assert change.high - change.value == pytest.approx(1.959964 * 0.5 / 3**0.5)
    assert summarize_margins([])["margin"] is None


def test_a_pair_that_contradicts_itself_stops_the_evaluation(learnt: Path, tmp_path: Path) -> None:
    same = [{"role": "assistant", "content": "3"}]
    row = {"prompt": [{"role": "user", "content": "1+2?"}], "chosen": same, "rejected": same}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"row 0: chosen and rejected are the same"):
        pair_margins(open_model(str(learnt)), [str(tmp_path / "bad.jsonl")])


def test_rated_answers_are_refused_by_name(learnt: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "What is 1+1?", "completion": "2", "label": True}]
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"a verdict \(KTO\).*`pairs` of an eval stage, need two"):
        pair_margins(open_model(str(learnt)), [str(file)])
