"""A conversation driven through a pipe."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from dualign.generation.chat import _Writer, chat
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
