"""Pins the date that a template asks for, so that tokens don't change from one day to the next."""

import re
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from dualign.errors import TemplateError

PINNED_DATE = date(2025, 7, 1)
"""What `strftime_now` says when no `date` is given: tokens must not change from one day to the
next.
"""

# Takes the place of transformers' strftime_now, which is the clock. On one line, so that jinja's
# line numbers hold; the empty expression at the end keeps a newline that the template may start
# with.
_PINNED_NOW = (
    "{%- macro strftime_now(format) -%}{%- set made = namespace(text=format) -%}"
    "{%- for code, text in pinned_date -%}{%- set made.text = made.text.replace(code, text) -%}"
    "{%- endfor -%}{{- made.text -}}{%- endmacro %}{{ '' }}"
)


def pin_date(text: str, day: str | None) -> tuple[str, dict[str, Any]]:
    """The template with `strftime_now` answering for `day`, and the variable that this needs."""
    if "strftime_now" not in text:
        return text, {}
    return _PINNED_NOW + text, {"pinned_date": _date_codes(day)}


@lru_cache(maxsize=8)
def _date_codes(day: str | None) -> list[tuple[str, str]]:
    """strftime's codes and their text on `day`, the longest first so that %-d isn't taken for %."""
    moment = datetime.combine(PINNED_DATE if day is None else _parse_date(day), datetime.min.time())
    codes = [f"%{letter}" for letter in "aAbBdmYyjHIMSpwUWxXcZf"]
    made = [(f"%-{letter}", moment.strftime(f"%{letter}").lstrip("0") or "0") for letter in "dmHIj"]
    return [*made, *((code, moment.strftime(code)) for code in codes), ("%%", "%")]


def _parse_date(day: str) -> date:
    for form in ("%Y-%m-%d", "%d %B %Y", "%d %b %Y"):
        if re.fullmatch(r"[\w\- ]+", day):
            try:
                return datetime.strptime(day, form).date()
            except ValueError:
                continue
    raise TemplateError(f"date {day!r}: expected a date such as 2025-07-01 or 01 July 2025")
