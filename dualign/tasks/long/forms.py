"""The forms of problems, in one table: RULER's thirteen tasks (arXiv 2404.06654, table 2)."""

from collections.abc import Callable
from dataclasses import dataclass

from dualign.tasks.long import documents, tracking, words
from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.language import Language
from dualign.tasks.long.needles import Needles


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form of problem."""

    ruler: str
    """the name of RULER's task"""
    draft: Callable[[Language, Draw, int], Draft]
    """makes a problem of a length in tokens, which sets how often words are repeated"""


FORMS: dict[str, Form] = {
    "needle": Form(ruler="niah_single_1", draft=Needles(haystack="noise").draft),
    "needle_essay": Form(ruler="niah_single_2", draft=Needles(haystack="essay").draft),
    "needle_uuid": Form(
        ruler="niah_single_3", draft=Needles(haystack="essay", values="uuids").draft
    ),
    "multi_key": Form(ruler="niah_multikey_1", draft=Needles(haystack="essay", hidden=4).draft),
    "multi_key_lines": Form(ruler="niah_multikey_2", draft=Needles(haystack="needles").draft),
    "multi_key_uuid": Form(
        ruler="niah_multikey_3",
        draft=Needles(haystack="needles", keys="uuids", values="uuids").draft,
    ),
    "multi_value": Form(
        ruler="niah_multivalue", draft=Needles(haystack="essay", values_of_a_key=4).draft
    ),
    "multi_query": Form(
        ruler="niah_multiquery", draft=Needles(haystack="essay", hidden=4, asked=4).draft
    ),
    "tracking": Form(ruler="vt", draft=tracking.draft),
    "common_words": Form(ruler="cwe", draft=words.draft_common),
    "frequent_words": Form(ruler="fwe", draft=words.draft_frequent),
    "question": Form(ruler="qa_1", draft=documents.draft_one),
    "question_two": Form(ruler="qa_2", draft=documents.draft_two),
}
