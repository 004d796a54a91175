"""Chat templates rendered as transformers renders them, in a fifth of the time and with the date pinned.

The same sandbox, extensions, filters and names; tests/data/test_sandbox.py compares the two on
many templates. What is faster: transformers' sandbox asks again for each attribute whether it is
safe, which depends on the object's type and the attribute's name alone; the generation marks cost
nothing; and rows hold plain values already, so nothing has to be copied for each render. What
differs: `strftime_now` answers for a given day, because tokens must not change from one day to the
next.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from dualign.errors import TemplateError

PINNED_DATE = date(2025, 7, 1)
"""What `strftime_now` says when no `date` is given."""

_DICT_NAMES = frozenset(dir(dict))
_PLAIN = frozenset({str, LoopContext})
_FORMATTING = frozenset({"format", "format_map"})
"""Methods of str that the sandbox replaces by its own."""


def render(text: str, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    """The template `text` with `messages` and the variables `given`; `date` sets the clock.

    Values must be of the types that JSON knows.

    Raises:
        jinja2.TemplateError, TypeError, ValueError: as the template raises them. TemplateError: a
        `date` that is none.
    """
    clock = _clock(given.get("date"))
    return _compiled(text).render(messages=messages, strftime_now=clock, **given)


class _ClosedNamespace(Namespace):
    """A namespace without names that start with an underscore, which could reach Python's own."""

    __slots__ = ("names",)

    def __init__(*args: Any, **given: Any) -> None:
        self, *rest = args
        values = dict(*rest, **given)
        for name in values:
            _check_name(name)
        _set_names(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        if name[0] == "_":
            _check_name(name)
        _names_of(self)[name] = value

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return _ClosedNamespace
        try:
            return _names_of(self)[name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        return f"<Namespace {_names_of(self)!r}>"


# The slot itself: by way of the namespace's attributes a template could reach it.
_names_of: Callable[[Any], dict[str, Any]] = _ClosedNamespace.__dict__["names"].__get__
_set_names: Callable[[Any, dict[str, Any]], None] = _ClosedNamespace.__dict__["names"].__set__


def _check_name(name: str) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace can't hold {name!r}: choose a name without _"
        )


class _Sandbox(ImmutableSandboxedEnvironment):
    """Knows at once what the sandbox says of the attributes that chat templates read."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._verdicts: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        key = (type(obj), attr)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = super().is_safe_attribute(obj, attr, value)
        return verdict

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`message.role` is an entry of a dict: jinja finds that out by an exception."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_NAMES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is _ClosedNamespace:
            names = _names_of(obj)
            return names[attribute] if attribute in names else super().getattr(obj, attribute)
        if (
            kind in _PLAIN
            and attribute not in _FORMATTING
            and self._verdicts.get((kind, attribute))
        ):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **given: Any) -> Any:
        """A method of a text or a list, or a namespace: anything else goes through jinja's checks."""
        if type(__obj) is not BuiltinMethodType and __obj is not _ClosedNamespace:
            return super().call(__context, __obj, *args, **given)
        given.pop("_loop_vars", None)
        given.pop("_block_vars", None)
        return __obj(*args, **given)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant writes. The mark does nothing here, but variables
    set inside it stay inside, as in transformers.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja's name, and its type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, and no other way to Python's type."""

    def __call__(self, *args: Any, **given: Any) -> dict[Any, Any]:
        return dict(*args, **given)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@lru_cache(maxsize=32)
def _compiled(text: str) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "dict": _Dict(),
        "namespace": _ClosedNamespace,
    }
    template = environment.from_string(text)
    template.globals = dict(template.globals)  # a ChainMap, which every render would walk through
    return template


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter writes `<` and `&` as HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def _clock(day: str | None) -> Callable[[str], str]:
    moment = datetime.combine(PINNED_DATE if day is None else _parse_date(day), datetime.min.time())

    def strftime_now(form: str) -> str:
        return moment.strftime(form)

    return strftime_now


def _parse_date(day: str) -> date:
    for form in ("%Y-%m-%d", "%d %B %Y", "%d %b %Y"):
        if re.fullmatch(r"[\w\- ]+", day):
            try:
                return datetime.strptime(day, form).date()
            except ValueError:
                continue
    raise TemplateError(f"date {day!r}: expected a date such as 2025-07-01 or 01 July 2025")
