"""The choice of sample answers."""

from dualign.report.samples import MAX_CHARACTERS, choose, plain, shortened

from .conftest import Record


def _rows(outcomes: str, task: str = "sums") -> list[Record]:
    """Two rows for each problem: t = only think right, n = only no_think, b = both, w = none."""
    return [
        {
            "task": task,
            "id": number,
            "mode": mode,
            "prompt": f"problem {number}",
            "answer": "x",
            "expected": number,
            "correct": outcome in right,
        }
        for number, outcome in enumerate(outcomes)
        for mode, right in (("think", "tb"), ("no_think", "nb"))
    ]


def _outcomes(rows: list[Record], count: int, seed: int = 0) -> list[str]:
    choice = choose(rows, task="sums", count=count, seed=seed)
    assert choice is not None
    return [pair.title.split(": ")[1] for pair in choice.shown]


def test_each_outcome_is_shown_where_modes_differ_first() -> None:
    expected = ["only think right", "both wrong", "only no_think right", "both right"]
    assert _outcomes(_rows("bbbbbbbbbwtn"), 4) == expected


def test_places_of_missing_outcomes_are_filled() -> None:
    assert _outcomes(_rows("bbbbw"), 4) == ["both wrong", "both right", "both right", "both right"]
    assert _outcomes(_rows("w"), 4) == ["both wrong"]


def test_all_outcomes_are_counted() -> None:
    choice = choose(_rows("ttbw") + _rows("nnn", task="cups"), task="sums", count=2, seed=0)
    assert choice is not None
    counts = {"only think right": 2, "both wrong": 1, "only no_think right": 0, "both right": 1}
    assert choice.outcomes == counts
    assert len(choice.shown) == 2


def test_same_seed_chooses_the_same_and_another_seed_others() -> None:
    rows = _rows("t" * 50)

    def titles(seed: int) -> list[str]:
        choice = choose(rows, task="sums", count=4, seed=seed)
        assert choice is not None
        return [pair.title for pair in choice.shown]

    assert titles(1) == titles(1)
    assert titles(1) != titles(2)


def test_problems_of_one_mode_only_are_not_shown() -> None:
    rows = [row for row in _rows("tt") if row["mode"] == "think"]
    assert choose(rows, task="sums", count=4, seed=0) is None


def test_faults_of_form_are_noted() -> None:
    rows = _rows("w")
    rows[0] |= {"think_tokens": 90, "closed": False, "finished": False}
    rows[1] |= {"leaked": True, "closed": None}
    choice = choose(rows, task="sums", count=1, seed=0)
    assert choice is not None
    pair = choice.shown[0]
    assert pair.think.note == "90 thinking tokens, think block not closed, cut at the token limit"
    assert pair.no_think.note == "think tag where none belongs"


def test_long_text_says_how_much_was_left_out() -> None:
    text = "a" * MAX_CHARACTERS + "b" * 50
    assert "50 characters left out" in shortened(text)
    assert shortened(text).startswith("aaa") and shortened(text).endswith("bbb")
    assert shortened("a" * MAX_CHARACTERS) == "a" * MAX_CHARACTERS


def test_prompts_of_every_form_become_text() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    assert plain(chat) == "system: Be brief.\nuser: 1+1?"
    assert (plain(None), plain("x"), plain(7), plain(["a"])) == ("", "x", "7", '["a"]')
