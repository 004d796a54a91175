"""The 25 checks of IFEval (arXiv 2311.07911, table 1): does a text follow an instruction that can be verified?

Each is a pure function of the text and the instruction's arguments, named as in google/IFEval.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "texts", "number", "relation"]
RELATIONS = ("at least", "less than")
LANGUAGE_PACKAGE = "langdetect"

_WORD = re.compile(r"\w+")
_JOINED_WORD = re.compile(r"\w+(?:[-'’.&]\w+)*")  # noqa: RUF001
_HIGHLIGHT = re.compile(r"\*\*(?!\s)[^*\n]+\*\*|\*(?!\s)[^*\n]+\*")
_BULLET = re.compile(r"^[^\S\n]*(?:-|\*(?!\*))", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_TITLE = re.compile(r"<<[^\n<>]*[^\n<>\s][^\n<>]*>>")
_FENCE = re.compile(r"```\w*\n?(.*?)\n?```", re.DOTALL)
_END_OF_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)|[。！？]+[」』”]*")  # noqa: RUF001
_NO_END = re.compile(
    r"(?:^|[\s(\"“])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|cf|approx|e\.g|i\.e|No)\.$"
)
_NUMBER_OF_ITEM = re.compile(r"^\s*\d+\.$", re.MULTILINE)
_LONGEST_END = 24  # characters that tell an abbreviation, or the number of an item
_BLANK = r"\s?"
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionCheck:
    """A kind of instruction: its function, and its arguments with what they have to be."""

    follows: Callable[..., bool]
    arguments: Mapping[str, Kind] = field(default_factory=dict)
    needs_language: bool = False
    """it tells languages apart, by a package"""


def _compares(count: int, relation: str, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.casefold() in text.casefold() for keyword in keywords)


def _has_keyword_often(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compares(text.casefold().count(keyword.casefold()), relation, frequency)


def _has_no_forbidden_word(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        for word in forbidden_words
    )


def _has_letter_often(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compares(text.lower().count(letter.lower()), let_relation, let_frequency)


def _is_in_language(text: str, language: str) -> bool:
    """Return whether a text is in a language (ISO 639-1); one without words of any language is.

    Needs the package `langdetect`, which IFEval uses.
    """
    import langdetect

    langdetect.DetectorFactory.seed = 0  # else the same text is told apart by chance
    try:
        return str(langdetect.detect(text)) == language
    except langdetect.LangDetectException:
        return True


def count_sentences(text: str) -> int:
    """Return the number of sentences: ends by . ! ? that belong to no abbreviation or number.

    `Dr. Li has 1.5 l. Good!` -> 2
    """
    count, start = 0, 0
    for match in _END_OF_SENTENCE.finditer(text):
        end = text[max(0, match.end() - _LONGEST_END) : match.end()]
        if _NO_END.search(end) or _NUMBER_OF_ITEM.search(end.rpartition("\n")[2]):
            continue
        count += bool(_WORD.search(text, start, match.end()))
        start = match.end()
    return count + bool(_WORD.search(text[start:]))


def _has_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compares(count_sentences(text), relation, num_sentences)


def _has_words(text: str, num_words: int, relation: str) -> bool:
    return _compares(len(_WORD.findall(text)), relation, num_words)


def _parts(text: str, divider: str) -> list[str] | None:
    """Return the parts between dividers, without empty ones at the ends; None if one between is empty."""
    parts = [part.strip() for part in text.split(divider)]
    inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
    return inner if inner and all(inner) else None


def _has_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by `***`."""
    return len(_parts(text, "***") or ()) == num_paragraphs


def _paragraph_begins(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by an empty line here."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].strip("\"'“”‘’*_.,?!:;()[]")  # noqa: RUF001
    return first.casefold() == first_word.casefold()


def _has_placeholders(text: str, num_placeholders: int) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def _has_postscript(text: str, postscript_marker: str) -> bool:
    """`P.S.` may have blanks between its letters."""
    pattern = (r"\." + _BLANK).join(map(re.escape, postscript_marker.strip().split(".")))
    return bool(re.search(rf"(?<!\w){pattern.removesuffix(_BLANK)}", text, re.IGNORECASE))


def _has_bullets(text: str, num_bullets: int) -> bool:
    return len(_BULLET.findall(text)) == num_bullets


def _is_constrained(text: str) -> bool:
    return any(answer in text for answer in _CONSTRAINED)


def _has_highlights(text: str, num_highlights: int) -> bool:
    return len(_HIGHLIGHT.findall(text)) >= num_highlights


def _has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Sections begin with the word and a number, such as `SECTION 1`."""
    marks = re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?\d+", text)
    return len(marks) >= num_sections


def _is_json(text: str) -> bool:
    fenced = _FENCE.fullmatch(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str) -> bool:
    return bool(_TITLE.search(text))


def _has_two_responses(text: str) -> bool:
    """They are divided by six asterisks, and differ."""
    parts = _parts(text, "******") or []
    return len(parts) == 2 and parts[0] != parts[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


def _is_quoted(text: str) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain.startswith('"') and plain.endswith('"')


def _is_upper(text: str) -> bool:
    return text.isupper() and _is_in_language(text, "en")


def _is_lower(text: str) -> bool:
    return text.islower() and _is_in_language(text, "en")


def _has_capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(word.isupper() for word in _JOINED_WORD.findall(text))
    return _compares(count, capital_relation, capital_frequency)


def _has_no_comma(text: str) -> bool:
    return "," not in text


def _check(follows: Callable[..., bool], **arguments: Kind) -> InstructionCheck:
    return InstructionCheck(follows=follows, arguments=arguments)


_IN_ENGLISH = {
    "change_case:english_capital": _is_upper,
    "change_case:english_lowercase": _is_lower,
}
CHECKS: dict[str, InstructionCheck] = {
    "keywords:existence": _check(_has_keywords, keywords="texts"),
    "keywords:frequency": _check(
        _has_keyword_often, keyword="text", frequency="number", relation="relation"
    ),
    "keywords:forbidden_words": _check(_has_no_forbidden_word, forbidden_words="texts"),
    "keywords:letter_frequency": _check(
        _has_letter_often, letter="text", let_frequency="number", let_relation="relation"
    ),
    "language:response_language": InstructionCheck(
        follows=_is_in_language, arguments={"language": "text"}, needs_language=True
    ),
    "length_constraints:number_sentences": _check(
        _has_sentences, num_sentences="number", relation="relation"
    ),
    "length_constraints:number_paragraphs": _check(_has_paragraphs, num_paragraphs="number"),
    "length_constraints:number_words": _check(_has_words, num_words="number", relation="relation"),
    "length_constraints:nth_paragraph_first_word": _check(
        _paragraph_begins, num_paragraphs="number", nth_paragraph="number", first_word="text"
    ),
    "detectable_content:number_placeholders": _check(_has_placeholders, num_placeholders="number"),
    "detectable_content:postscript": _check(_has_postscript, postscript_marker="text"),
    "detectable_format:number_bullet_lists": _check(_has_bullets, num_bullets="number"),
    "detectable_format:constrained_response": _check(_is_constrained),
    "detectable_format:number_highlighted_sections": _check(
        _has_highlights, num_highlights="number"
    ),
    "detectable_format:multiple_sections": _check(
        _has_sections, section_spliter="text", num_sections="number"
    ),
    "detectable_format:json_format": _check(_is_json),
    "detectable_format:title": _check(_has_title),
    "combination:two_responses": _check(_has_two_responses),
    "combination:repeat_prompt": _check(_repeats_prompt, prompt_to_repeat="text"),
    "startend:end_checker": _check(_ends_with, end_phrase="text"),
    "startend:quotation": _check(_is_quoted),
    "change_case:capital_word_frequency": _check(
        _has_capital_words, capital_frequency="number", capital_relation="relation"
    ),
    "punctuation:no_comma": _check(_has_no_comma),
} | {
    name: InstructionCheck(follows=follows, needs_language=True)
    for name, follows in _IN_ENGLISH.items()
}
