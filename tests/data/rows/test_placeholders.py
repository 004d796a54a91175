"""Placeholders of images, sounds and videos in a text: refused in their place, not where a text speaks of them."""

import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation, PreferencePair
from dualign.data.faults import RowError
from dualign.data.rows.sources import to_conversation, to_pair

SOURCE = SourceConfig(path="r")


def read(text: str) -> Conversation:
    return to_conversation({"prompt": text, "completion": "A dog."}, source=SOURCE, index=0)


@pytest.mark.parametrize(
    "text",
    [
        "<image>\nWhat is in it?",
        "<image>What is in it?",
        "What is in it?\n<image>",
        "<image>\n<image>\nWhich is older?",
        "The first:\n<image>\nand the second:\n<image>\nWhich is older?",
        "<|vision_start|><|image_pad|><|vision_end|>What is in it?",
        "<|image_1|>\nWhat is in it?",
        "<|image|>What is in it?",
        "<image_soft_token>What is in it?",
        "<start_of_image> What is in it?",
        "<image_placeholder>What is in it?",
        "[IMG]What is in it?",
        "<video>\nWhat happens?",
        "<audio>\nWho speaks?",
        "<|AUDIO|>Who speaks?",
        "Picture 1: <img>a/b.jpg</img>\nWhat is in it?",
    ],
)
def test_a_placeholder_in_the_place_of_an_image_is_refused(text: str) -> None:
    with pytest.raises(RowError, match="that the model doesn't see") as error:
        read(text)
    assert error.value.code == "multimodal"
    pair = {"prompt": text, "chosen": "A dog.", "rejected": "A cat."}
    with pytest.raises(RowError, match="multimodal"):
        to_pair(pair, source=SOURCE, index=0)


@pytest.mark.parametrize(
    "text",
    [
        "What does the tag <image> do in HTML?",
        "What is the difference between <image> and <img>?",
        "Is this right?\n```\n<video>\n```",
        "Complete it:\n<video>\n<source src='a.mp4'>\n</video>",
        "<svg>\n<image>\n</svg>\nWhy is this SVG empty?",
        "Which HTML element is\n<audio>",
        "What is the token <|image_pad|> for?\n<|image_pad|>",
        "[IMG]http://a/b.png[/IMG] shows nothing in my forum.",
        "[Image] and [1] are references.",
        "Is 1 < 2 in this image?",
        "<imagine> a dog.",
    ],
)
def test_a_text_about_tags_is_none(text: str) -> None:
    assert read(text).messages[0].content == text


def test_an_answer_may_hold_one() -> None:
    row = {"prompt": "Name a tag.", "completion": "<video>"}
    made: Conversation | PreferencePair = to_conversation(row, source=SOURCE, index=0)
    assert isinstance(made, Conversation) and made.messages[1].content == "<video>"
