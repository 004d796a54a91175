"""Spans that shouldn't be are seen even where nothing refused the row before."""

from dualign.data.conversation import Conversation, Message
from dualign.data.text.spans import RenderedRow
from dualign.doctor.rendering import TurnMarkers, check_rendering

TURNS = TurnMarkers(openings={"think": "[A]<think>", "no_think": "[A]"}, end_of_turn="[end]")
TEXT = "[U]Is it?[end][A]Yes.[end]"


def codes(start: int, stop: int, text: str = TEXT) -> list[str]:
    asked, said = Message(role="user", content="Is it?"), Message(role="assistant", content="Yes.")
    conversation = Conversation(messages=(asked, said), mode="no_think", source="made", row=0)
    rendered = RenderedRow(
        text=text,
        spans=((start, stop),),
        mode="no_think",
        source="made",
        row=0,
        conversation=conversation,
    )
    return [fault.code for fault in check_rendering(rendered, TURNS, supervise="assistant")]


def test_the_answer_and_its_end_are_right() -> None:
    assert codes(TEXT.index("Yes."), len(TEXT)) == []


def test_a_span_that_begins_with_the_header_is_the_prompts() -> None:
    assert codes(TEXT.index("[A]"), len(TEXT)) == ["prompt_supervised"]


def test_a_span_without_its_end_never_teaches_to_stop() -> None:
    assert codes(TEXT.index("Yes."), TEXT.index("[end]", 20)) == ["end_of_turn_unsupervised"]


def test_an_empty_block_is_the_prompts() -> None:
    text = TEXT.replace("[A]", "[A]<think>\n\n</think>")
    assert codes(text.index("<think>"), len(text), text) == ["empty_think_supervised"]
