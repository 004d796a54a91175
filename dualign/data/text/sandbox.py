"""Render chat templates as transformers does, in less time and with the date pinned.

The same sandbox, extensions, filters and names; tests/data/text/test_sandbox.py compares the two on
many templates. Faster: whether an attribute is safe depends on the object's type and the
attribute's name alone, so it is asked once; the generation marks cost nothing; and rows hold plain
values already, so nothing is copied for each render. Different: `strftime_now` answers for a given
day, because tokens must not change from one day to the next.
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
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from dualign.errors import TemplateError

PINNED_DATE = date(2025, 7, 1)
"""The day of `strftime_now` if there is no `date`."""


def render(text: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """Render the template `text` with messages and variables; the variable `date` sets the clock.

    Values must be of the types that JSON knows.

    Raises:
        jinja2.TemplateError, TypeError, ValueError: as the template raises them. TemplateError:
        `date` is not a valid date.
    """
    clock = _clock(variables.get("date"))
    return _compiled(text).render({**variables, "messages": messages, "strftime_now": clock})


class _Namespace(Namespace):
    """A namespace without names that start with an underscore, which could reach Python's own."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args  # so that a value may be called self
        names = dict(*rest, **values)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            _check_name(name)
        _values(self)[name] = value


def _values(namespace: Namespace) -> dict[str, Any]:
    """Return what a namespace holds, past its own slow look-up of attributes."""
    values: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return values


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace can't hold {name!r}: choose a name without _"
        )


_DICT_NAMES = frozenset(dir(dict))
_PLAIN = (str, bool, int, type(None))
"""Types whose values jinja's `getattr` returns as they are."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which remembers its verdicts. Keys of objects and values of namespaces are
    found without the exception that jinja's own way begins with.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._verdicts: dict[tuple[type, str], bool] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_NAMES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is _Namespace and type(value := _values(obj).get(attribute, obj)) in _PLAIN:
            return value
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(__obj) is not BuiltinMethodType:  # such as of texts: they take no context
            return super().call(__context, __obj, *args, **kwargs)
        kwargs.pop("_block_vars", None)
        kwargs.pop("_loop_vars", None)
        return __obj(*args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        key = (type(obj), attr)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = super().is_safe_attribute(obj, attr, value)
        return verdict


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text. The mark does nothing here, but variables set
    inside it stay inside, as in transformers.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja's name, and its type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, and no other way to Python's type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

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
        "namespace": _Namespace,
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
