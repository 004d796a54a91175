"""Whether a trace and an answer are in the language of the question.

Languages are told apart by langdetect, IFEval's, with a fixed seed. Code, formulas, numbers and links
don't count. What has no words then isn't counted; what has few, or no clear language, is `unknown`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from dualign.terminal import wide_console

_PARTS = ("trace", "answer")
_PACKAGE = "langdetect"
_CODE = re.compile(r"[a-z]{2}")
_UNKNOWN = "unknown"
_NO_WORDS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.{0,999}?\$\$|\$[^$\n]*\$|\\\(.{0,499}?\\\)|\\\[.{0,999}?\\\]|\\[A-Za-z]+(?:\{[^{}]*\})?"
    r"|https?://\S+|<[^<>]{1,40}>|[\d_*#|+=<>/^{}\[\]()~&%@\"\u2019']+",
    re.DOTALL,
)
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_LETTER = re.compile(r"[^\W\d_]")
_PIECE = 1000  # characters at the head, in the middle and at the end of what is longer
_FEWEST_WORDS, _FEWEST_LETTERS, _FEWEST_OTHERS = 5, 24, 8
_LEAST_PROBABLE = 0.9


def with_languages(samples: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Add `trace_language` and `answer_language` to the lines of problems that name their `language`.

    That is a code that can be told (ISO 639-1). Without the package a line says what to install.
    """
    coded = [sample for sample in samples if _CODE.fullmatch(str(sample.get("language")))]
    if coded and find_spec(_PACKAGE) is None:
        wide_console().print(
            f"rows name their language, but nothing tells that of their answers: {_PACKAGE} is missing "
            "(pip install 'dualign[eval]')"
        )
        return tuple(samples)
    keys = {id(sample) for sample in coded if sample["language"] in _codes()}
    return tuple(
        {**sample, **_languages_of(sample)} if id(sample) in keys else sample for sample in samples
    )


def language_of(text: str) -> str | None:
    """Return the language of a text (ISO 639-1) or `unknown`; None if it has no words."""
    plain = " ".join(_NO_WORDS.sub(" ", text).split())
    letters = _LETTER.findall(plain)
    if not letters:
        return None
    latin = len(_LATIN.findall(plain))
    is_short = len(plain.split()) < _FEWEST_WORDS or len(letters) < _FEWEST_LETTERS
    if is_short and len(letters) - latin < _FEWEST_OTHERS:  # other scripts need fewer letters
        return _UNKNOWN
    if len(plain) > 3 * _PIECE:
        middle = (len(plain) - _PIECE) // 2
        plain = f"{plain[:_PIECE]} {plain[middle : middle + _PIECE]} {plain[-_PIECE:]}"
    return _detect(plain) or _UNKNOWN


def _languages_of(sample: Mapping[str, Any]) -> dict[str, str]:
    """Return `trace_language` and `answer_language` of a line of samples.jsonl, where there are words."""
    texts = {"trace": sample["thinking"] or "", "answer": sample["answer"]}
    languages = {f"{part}_language": language_of(text) for part, text in texts.items()}
    return {key: language for key, language in languages.items() if language is not None}


def count_languages(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many traces and answers are in the question's language, by the lines that say it.

    `same`, `other` and `unknown` of each part; none of a part without words.
    """
    counts: dict[str, dict[str, int]] = {}
    for part in _PARTS:
        key = f"{part}_language"
        kinds = [_kind(sample["language"], sample[key]) for sample in samples if key in sample]
        if kinds:
            counts[part] = {kind: kinds.count(kind) for kind in ("same", "other", _UNKNOWN)}
    return counts


def _kind(question: str, text: str) -> str:
    if text == _UNKNOWN:
        return _UNKNOWN
    return "same" if text == question else "other"


@cache
def _codes() -> frozenset[str]:
    return frozenset(code.partition("-")[0] for code in _factory().get_lang_list())


@cache
def _factory() -> Any:
    """Return langdetect's profiles, apart from those of the process: their seed is nobody else's."""
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.set_seed(0)
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


def _detect(text: str) -> str | None:
    """Return a language that is clearly the likeliest."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        likely = detector.get_probabilities()
    except LangDetectException:
        return None
    if not likely or likely[0].prob < _LEAST_PROBABLE:
        return None
    return str(likely[0].lang).partition("-")[0]
