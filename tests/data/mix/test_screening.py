"""Duplicates and problems of the evaluation are left out before tokenising, and counted."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from dualign.config import Document, parse
from dualign.data.config import DataConfig, DecontaminateConfig, DedupConfig, SourceConfig
from dualign.data.mix.decontamination import index_tasks
from dualign.data.mix.dedup import MINIMA, band_hashes, bands_for, first_alike, minhashes
from dualign.data.mix.ngrams import ngram_hashes, shingles, word_hashes, words_of
from dualign.data.prepare import DataRequest, SFTData, prepare_pairs, prepare_sft
from dualign.data.text.template import load_template
from dualign.errors import ConfigError, DataError
from dualign.fingerprint import Digests, fingerprint
from dualign.inspect.terminal import show
from dualign.recipe import load_recipe

Write = Callable[[list[dict[str, Any]], str], Path]
LONG = "A farmer keeps seven brown hens in the old barn and sells forty eggs each market day."


def chat(question: str, answer: str = "Yes.", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def prepared(
    base: Path, tokenizer: PreTrainedTokenizerFast, *names: str, **options: Any
) -> SFTData:
    data = DataConfig(
        sources=tuple(SourceConfig(path=name) for name in names), max_tokens=2048, **options
    )
    return prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=1, base=base))


def test_words_are_without_case_and_punctuation_and_han_stands_alone() -> None:
    assert words_of("Don't stop: 3+4=7!") == [*("don", "t", "stop", "3", "+", "4", "=", "7")]
    assert words_of("GPT模型 ok") == ["gpt", "模", "型", "ok"]


def test_ngrams_are_those_of_a_slow_loop() -> None:
    text = "a b c a b c d"
    words = words_of(text)
    slow = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    fast = ngram_hashes(word_hashes(text), 3).tolist()
    assert [[row == other for other in fast] for row in fast] == [
        [row == other for other in slow] for row in slow
    ]
    assert len(ngram_hashes(word_hashes("a b"), 3)) == 0
    assert len(shingles(word_hashes("a b"), 3)) == 1


def test_the_first_of_the_same_rows_stays_over_all_sources(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows([chat("Hi"), chat("Ho"), chat("Hi"), chat("Hi ", "Yes.\n")], "a.jsonl")
    traced = chat("Hi", "<think>\nwell\n</think>\n\nYes.")
    base = write_rows([chat("Ho"), traced, chat("Hu"), traced], "b.jsonl").parent
    assert prepared(base, tokenizer, "a.jsonl", "b.jsonl").rows["kept"] == 8
    made = prepared(base, tokenizer, "a.jsonl", "b.jsonl", dedup=DedupConfig()).rows
    by = {(entry["source"], entry["mode"]): entry for entry in made["by"]}
    assert by["a", "no_think"]["dropped"] == {"duplicate": 2}
    assert by["b", "no_think"]["dropped"] == {"duplicate": 1}
    assert by["b", "think"]["dropped"] == {"duplicate": 1} and by["b", "think"]["kept"] == 1
    assert (made["in"], made["kept"], made["dropped"]) == (8, 4, {"duplicate": 4})
    same = {(entry["source"], entry["row"]): entry["same_as"] for entry in made["removed"]}
    assert same == {
        ("a", 2): {"source": "a", "row": 0},
        ("a", 3): {"source": "a", "row": 0},
        ("b", 0): {"source": "a", "row": 1},
        ("b", 3): {"source": "b", "row": 1},
    }


def test_rows_that_contradict_themselves_are_left_to_their_own_faults(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [chat("Hi"), chat("Hi", ""), chat("Hi", ""), chat("Hi")]
    base = write_rows(rows, "a.jsonl").parent
    made = prepared(base, tokenizer, "a.jsonl", dedup=DedupConfig(), conflicts="drop")
    assert made.rows["dropped"] == {"duplicate": 1, "empty_answer": 2}


def test_near_duplicates_go_and_modes_are_kept_apart(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    story = " ".join(f"{LONG} And {number} more came." for number in range(6))
    other = story.replace("brown", "red").replace("barn", "shed").replace("eggs", "cakes")
    rows = [
        chat(story),
        chat(story + " The end!"),
        chat(other),
        chat(story, "<think>\nwell\n</think>\n\nYes."),
        chat("Short one?"),
        chat("Short two?"),
        chat("\u2764"),
        chat("\u2600"),
    ]
    base = write_rows(rows, "a.jsonl").parent
    made = prepared(base, tokenizer, "a.jsonl", dedup=DedupConfig(method="minhash"))
    assert made.rows["dropped"] == {"near_duplicate": 1}
    (gone,) = made.rows["removed"]
    assert (gone["row"], gone["code"]) == (1, "near_duplicate")
    assert gone["same_as"] == {"source": "a", "row": 0}
    assert gone["text"].startswith("A farmer keeps seven")
    shown = StringIO()
    show(made, tokenizer, samples=0, console=Console(file=shown, width=200))
    assert "near_duplicate" in shown.getvalue() and "source a, row 0" in shown.getvalue()


def test_minhash_without_its_package_says_what_to_install(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_rows([chat("Hi")], "a.jsonl").parent
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(DataError, match=r"pip install 'dualign\[data\]', or use method: exact"):
        prepared(base, tokenizer, "a.jsonl", dedup=DedupConfig(method="minhash"))


def test_bands_find_rows_of_the_threshold_nearly_always() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        bands, width = bands_for(threshold)
        assert bands * width <= MINIMA
        assert 1 - (1 - threshold**width) ** bands >= 0.95
        wider = width + 1
        assert wider > MINIMA or 1 - (1 - threshold**wider) ** (MINIMA // wider) < 0.95


@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.0, 0.02, 0.05, 0.3]))
@settings(max_examples=30)
def test_what_is_found_agrees_with_comparing_all_pairs(seed: int, rate: float) -> None:
    """Against the slow way: each row with all rows that stay, by the true overlap."""
    draw = random.Random(seed)
    first = [draw.choice("abcdefghijklmnop") * draw.randint(1, 4) for _ in range(300)]
    texts = []
    for _ in range(8):
        words = [draw.choice(first) if draw.random() < rate else word for word in first]
        texts.append(" ".join(words if draw.random() < 0.8 else draw.sample(words, len(words))))
    sets = [shingles(word_hashes(text), 5) for text in texts]
    minima = np.frombuffer(b"".join(minhashes(sets)), dtype=np.uint32).reshape(len(texts), -1)
    found = first_alike(band_hashes(minima, 0.7), lambda rows: minima[rows], threshold=0.7)
    plain = [set(hashes.tolist()) for hashes in sets]
    for row, of in enumerate(found.tolist()):
        overlaps = [
            len(plain[row] & plain[other]) / len(plain[row] | plain[other])
            for other in range(row)
            if found[other] < 0
        ]
        if of < 0:  # nothing much above the threshold was overlooked
            assert max(overlaps, default=0) < 0.87
        else:  # and nothing much below it was taken; 0.13 is three deviations of the estimate
            same = plain[row] & plain[of]
            assert found[of] < 0 and len(same) / len(plain[row] | plain[of]) > 0.57


def test_rows_of_one_phrase_take_time_in_proportion() -> None:
    """Rows just under the threshold all share bands; without a bound each is compared with all."""

    def compared(count: int) -> int:
        draw, seen = np.random.default_rng(0), 0
        phrase = [f"w{number}" for number in range(60)]
        texts = []
        for _ in range(count):
            phrase[15], phrase[35] = (str(number) for number in draw.integers(0, 10**6, 2))
            texts.append(" ".join(phrase))
        sets = [shingles(word_hashes(text), 5) for text in texts]
        minima = np.frombuffer(b"".join(minhashes(sets)), dtype=np.uint32).reshape(count, -1)

        class Counted(np.ndarray):  # type: ignore[type-arg]
            def __getitem__(self, rows: Any) -> Any:
                nonlocal seen
                seen += len(rows) if isinstance(rows, list) else 0
                return np.asarray(self)[rows]

        first_alike(
            band_hashes(minima, 0.8), lambda rows: minima[rows].view(Counted), threshold=0.8
        )
        return seen

    few, many = compared(400), compared(1600)
    assert many / 1600 < 1.6 * max(few / 400, 200)


def write_task(folder: Path, name: str, questions: list[str], **more: Any) -> str:
    rows = [{"question": question, "answer": "1"} for question in questions]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    about = {"name": name, "rows": f"{name}.jsonl", "prompt": "{question}", "verifier": "integer"}
    path.write_text("".join(f"{key}: {json.dumps(item)}\n" for key, item in (about | more).items()))
    return str(path)


def test_rows_that_hold_a_problem_go_and_are_counted_for_each_task(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        chat("Hello, what is the weather like today in the north of Spain, please tell me?"),
        chat(f"Look at this. {LONG.upper()} How many?"),
        chat("What is 3+4?"),
        chat("What is 3 + 4, and what is 8 + 9?"),
        chat("Tell me more.", f"Well: {LONG}"),
        chat("Think.", f"<think>\n{LONG}\n</think>\n\nYes."),
    ]
    base = write_rows(rows, "a.jsonl").parent
    tasks = (
        write_task(base, "farm", [LONG]),
        write_task(base, "sums", ["What is 3+4?"], instruction="Answer with the number."),
    )
    asked = DecontaminateConfig(tasks=tasks)
    made = prepared(base, tokenizer, "a.jsonl", decontaminate=asked).rows
    assert made["dropped"] == {"contaminated": 4} and made["kept"] == 2
    assert made["tasks"] == {
        "farm": {"problems": 1, "rows": 3},
        "sums": {"problems": 1, "rows": 1},
    }
    by = {entry["mode"]: entry["dropped"] for entry in made["by"]}
    assert by == {"no_think": {"contaminated": 3}, "think": {"contaminated": 1}}
    assert [entry["same_as"] for entry in made["removed"][:2]] == [
        {"task": "farm", "problem": "1"},
        {"task": "sums", "problem": "1"},
    ]
    json.dumps(made)


def test_fewer_shared_words_than_asked_for_are_no_problem(tmp_path: Path) -> None:
    words = words_of(LONG)
    index = index_tasks([write_task(tmp_path, "farm", [LONG])], 13)
    assert index.find([" ".join(words[:12])]) is None
    assert index.find([" ".join(words[1:13]), " ".join(words[2:14])]) is None
    assert index.find(["So " + " ".join(words[2:15]) + " so"]) is not None
    assert index.find([""]) is None


def test_the_phrasing_that_all_problems_share_does_not_count(tmp_path: Path) -> None:
    asked = "Read the following question with care and then give one number as the answer to it: {}"
    questions = [asked.format(f"what is {number} plus {number + 1}?") for number in range(30)]
    index = index_tasks([write_task(tmp_path, "sums", questions)], 13)
    assert index.find([asked.format("how tall is the tower?")]) is None
    assert index.find([f"Please! {questions[17]}"]) is not None


def test_a_prompt_around_a_question_does_not_hide_it(tmp_path: Path) -> None:
    path = write_task(tmp_path, "sums", ["What is 3+4?"], prompt="Problem: {question}\nAnswer:")
    assert index_tasks([path], 13).find(["what is 3 + 4"]) is not None


def test_pairs_are_screened_too(write_rows: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    pair = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    rows = [pair, pair, pair | {"rejected": "never"}, pair | {"prompt": LONG}]
    base = write_rows(rows, "p.jsonl").parent
    data = DataConfig(
        sources=(SourceConfig(path="p.jsonl"),),
        packing="none",
        dedup=DedupConfig(),
        decontaminate=DecontaminateConfig(tasks=(write_task(base, "farm", [LONG]),)),
    )
    made = prepare_pairs(
        DataRequest(data, tokenizer, load_template("dualign"), seed=1, base=base)
    ).rows
    assert (made["kept"], made["dropped"]) == (2, {"contaminated": 1, "duplicate": 1})


IN_WORKERS = """
import json, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_sft
from dualign.data.text.template import load_template
base = Path(sys.argv[1])
tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
template = load_template("dualign")
for count in (2, 1, 2):
    data = DataConfig(
        sources=(SourceConfig(path="a.jsonl"),),
        dedup=DedupConfig(method="minhash", threshold=0.95),
        num_proc=count,
        cache=False,
    )
    rows = prepare_sft(DataRequest(data, tokenizer, template, seed=1, base=base)).rows
    print(json.dumps(rows))
"""


def test_screening_is_the_same_in_workers_before_and_after_this_process_did_it(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    """rensa's threads don't live on in forked processes, which waited for them for ever."""
    rows = [chat(f"{LONG} {number % 2000}", f"It is {number % 2000}.") for number in range(3000)]
    base = write_rows(rows, "a.jsonl").parent
    tokenizer.save_pretrained(base)
    command = [sys.executable, "-c", IN_WORKERS, str(base)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, alone, again = map(json.loads, done.stdout.splitlines())
    assert first == alone == again
    assert first["dropped"]["duplicate"] == 1000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dedup": {"method": "simhash"}}, "data.dedup.method: expected one of exact, minhash"),
        ({"dedup": {"treshold": 0.5}}, "unknown key (did you mean 'threshold'?)"),
        ({"dedup": {"threshold": 0}}, "data.dedup.threshold: expected more than 0"),
        ({"decontaminate": {}}, "needs the key 'tasks'"),
        ({"decontaminate": {"tasks": [], "ngram": 1}}, "data.decontaminate.ngram: expected 3"),
    ],
)
def test_what_cannot_be_screened_is_refused_with_the_recipe(
    data: dict[str, Any], message: str
) -> None:
    document = Document(file="r.yaml")
    parse(DataConfig, {"sources": [{"path": "a"}], **data}, document, ("data",))
    with pytest.raises(ConfigError) as raised:
        document.raise_problems()
    assert message in str(raised.value)


def test_task_files_stand_beside_the_recipe_and_their_rows_are_part_of_the_stage(
    tmp_path: Path,
) -> None:
    write_task(tmp_path, "farm", [LONG])
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("Hi")))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "output_dir: runs\nkind: sft\nmodel: a/b\ndata:\n  sources: [{path: a.jsonl}]\n"
        "  decontaminate: {tasks: [farm.yaml]}\n"
    )

    def loaded() -> tuple[str, str]:
        (entry,) = load_recipe(recipe, []).stages
        (task,) = entry.config.data.decontaminate.tasks
        return task, fingerprint(entry, {}, Digests())

    task, before = loaded()
    assert task == str(tmp_path / "farm.yaml") and loaded() == (task, before)
    write_task(tmp_path, "farm", [LONG + " How many?"])
    assert loaded()[1] != before
