"""A conversation driven through a pipe."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from dualign.generation.answers import ask, budgeted, sample_request
from dualign.generation.budgets import Budget
from dualign.generation.chat import _Writer, chat
from dualign.generation.config import Endpoint
from dualign.generation.responders import open_responder
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import TAGS, TraceMarks
from tests.generation.servers import Proxy


def talk(learnt, lines, monkeypatch, **options):
    """What the terminal shows, with colours, so that dimming can be seen."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, color_system="standard")
    chat(str(learnt), max_new_tokens=40, temperature=0.0, console=console, **options)
    return out.getvalue()


def test_thinking_is_dimmed_and_the_answer_is_not(learnt, monkeypatch):
    shown = talk(learnt, ["What is 4+5?", "/quit"], monkeypatch)
    assert "\x1b[2mfour, \x1b[0m\x1b[2mfive" in shown
    assert "9" in shown.split("five")[1]
    assert "\x1b[2m9" not in shown
    assert "think>" not in shown


def test_the_switch_changes_the_answer(learnt, monkeypatch):
    shown = talk(learnt, ["/no_think", "What is 4+5?", "/quit"], monkeypatch)
    assert "mode: no_think" in shown
    assert "four" not in shown
    assert "8" in shown.split("What is" if "What is" in shown else "mode: no_think")[1]


def test_a_question_may_follow_the_switch_and_reset_forgets(learnt, monkeypatch):
    lines = ["What is 2+2?", "/reset", "/no_think What is 7+1?", "/nothing", "/quit"]
    shown = talk(learnt, lines, monkeypatch)
    assert "two twice is" in shown.replace("\x1b[0m\x1b[2m", "")
    assert "forgotten" in shown
    assert "/nothing: no such command" in shown


def test_the_end_of_the_input_ends_the_conversation(learnt, monkeypatch):
    assert "[think] >" in talk(learnt, [], monkeypatch)


def test_a_conversation_that_is_too_long_asks_for_a_reset(learnt, monkeypatch):
    shown = talk(learnt, ["a" * 480, "/quit"], monkeypatch)
    assert "/reset first" in shown


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_tags_are_found_in_pieces_of_any_size(size):
    out = io.StringIO()
    writer = _Writer(Console(file=out, width=200), TAGS, thinking=False)
    text = "a<b <think>\nx</y\n</think>\nc<thin"
    for start in range(0, len(text), size):
        writer.write(text[start : start + size])
    writer.end()
    assert out.getvalue() == "a<b \nx</y\n\nc<thin\n"
    assert writer.text == text


@pytest.mark.parametrize("size", [1, 4, 60])
@pytest.mark.parametrize("text", ["[A]why[F]four", "[H]four", "[four"])
def test_marks_of_a_family_are_not_shown(size, text):
    out = io.StringIO()
    marks = TraceMarks(head="[A]", closing="[F]", answer_head="[H]")
    writer = _Writer(Console(file=out, width=200), marks, thinking=False)
    for start in range(0, len(text), size):
        writer.write(text[start : start + size])
    writer.end()
    shown = {"[A]why[F]four": "whyfour", "[H]four": "four"}
    assert out.getvalue() == shown.get(text, text) + "\n"
    assert writer.text == text


def test_a_real_pipe_drives_it(learnt):
    code = f"from dualign.generation.chat import chat; chat({str(learnt)!r}, max_new_tokens=40, temperature=0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="/no_think\nWhat is 1+2?\n/quit\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mode: no_think" in done.stdout
    assert "3" in done.stdout.split("mode: no_think")[1]


def test_an_endpoint_streams_and_switches(learnt_server, monkeypatch):
    shown = talk(learnt_server, ["What is 4+5?", "/no_think What is 4+5?", "/quit"], monkeypatch)
    slow, fast = shown.split("mode: no_think")
    slow = slow.replace("\x1b[0m\x1b[2m", "")
    assert "\x1b[2mfour, five" in slow
    assert "9" in slow.split("five")[1]
    assert "8" in fast and "five" not in fast
    assert "think>" not in shown


def test_a_stream_that_breaks_is_said_and_the_conversation_goes_on(learnt_server, monkeypatch):
    def once(number, body):
        return "cut" if number == 0 else None

    with Proxy(learnt_server, once).running() as server:
        lines = ["/no_think What is 4+5?", "What is 7+1?", "/quit"]
        shown = talk(server.address, lines, monkeypatch)
        assert [len(asked.body["messages"]) for asked in server.asked] == [1, 1]
        assert f"{server.address}: " in shown.split("\n", 1)[1]
    assert "[no_think] > \x1b[0m1\n" in shown


def plain(shown):
    """What is shown, without colors."""
    return re.sub("\x1b\\[[0-9;]*m", "", shown)


@pytest.mark.parametrize("tokens", [0, 1, 4, 9])
def test_a_budget_closes_the_trace_as_in_an_evaluation(learnt, tmp_path, monkeypatch, tokens):
    responder = open_responder(
        str(learnt), backend="transformers", dtype="auto", batch_tokens=900, label="x"
    )
    prompt = responder.prompt([{"role": "user", "content": "What is 4+5?"}], "think", None)
    whole = sample_request(prompt, Sampling(max_new_tokens=40), 0, "x")
    cut = budgeted(whole, Budget(tokens=tokens), answer_tokens=40)
    (answer,) = ask(responder, [cut], SampleFile(tmp_path / "a.jsonl"))
    lines = ["What is 4+5?", "/quit"]
    shown = plain(talk(learnt, lines, monkeypatch, budget=tokens)).split("[think] > ")[1]
    assert shown.strip() == answer.generated.replace("</think>", "", 1).strip()
    assert shown.startswith("four, five"[:tokens])


def test_a_budget_is_set_and_taken_away_in_the_chat(learnt, monkeypatch):
    lines = [
        "/budget 3",
        "What is 4+5?",
        "/reset",
        "/budget none",
        "What is 4+5?",
        "/budget x",
        "/quit",
    ]
    shown = plain(talk(learnt, lines, monkeypatch))
    early, whole = shown.split("budget: none")
    assert "budget: 3" in early and "fou\n" in early and "four" not in early
    assert "four, five" in whole
    assert "/budget x: expected a number of tokens, or none" in whole


def test_a_budget_that_a_trace_does_not_reach_changes_nothing(learnt, monkeypatch):
    lines = ["What is 4+5?", "/no_think What is 4+5?", "/quit"]
    assert talk(learnt, lines, monkeypatch, budget=30) == talk(learnt, lines, monkeypatch)


def test_a_server_closes_traces_in_a_chat_if_its_field_is_named(learnt_server, monkeypatch):
    lines = ["What is 4+5?", "/quit"]
    assert "no thinking_budget_field" in talk(learnt_server, lines, monkeypatch, budget=4)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    out = io.StringIO()
    endpoint = Endpoint(url=learnt_server, thinking_budget_field="thinking_budget_tokens")
    chat(
        endpoint, max_new_tokens=40, temperature=0.0, budget=4, console=Console(file=out, width=200)
    )
    assert "> \nfou\n\n" in out.getvalue()
