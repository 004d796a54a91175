"""Check the answer's JSON by a schema."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from dualign.errors import DataError, EvaluationError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong
from dualign.verifiers.fences import last_block
from dualign.verifiers.regex import find_all


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonSchemaVerifier(Verifier):
    """The answer is JSON, alone or in a code fence, and valid by a JSON Schema."""

    takes_lists: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("schema",)
    kind: Literal["json_schema"] = "json_schema"
    """this kind of verifier"""
    schema: str | Mapping[str, Any] | None = None
    """the schema of every row: a .json file, relative to the task file, or its keys; absent: the row's
    answer is a schema, as an object or as text
    """

    @property
    def needs_expected(self) -> bool:
        return self.schema is None

    def require(self) -> None:
        try:
            import jsonschema  # noqa: F401 - whether it is there
        except ImportError:
            raise EvaluationError(
                "the verifier json_schema needs a package: pip install 'dualign[eval]'"
            ) from None
        if self.schema is not None:
            self.read(None)

    def read(self, expected: Any) -> Any:
        """Return the schema's validator."""
        schema = expected if self.schema is None else self.schema
        what = f"expected answer {excerpt(expected)}" if self.schema is None else "schema"
        if isinstance(self.schema, str):
            what = self.schema
            if not Path(what).is_file():
                raise EvaluationError(f"{what}: no such file; expected a JSON Schema")
            schema = Path(what).read_bytes()
        if isinstance(schema, str | bytes):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise DataError(f"{what}: isn't JSON: {error}") from None
        if not isinstance(schema, Mapping | bool):
            raise DataError(f"{what}: a JSON Schema is an object, found {excerpt(schema)}")
        return _validator(schema, what)

    @property
    def can_vote(self) -> bool:
        """Whole texts pass, which are rarely the same twice."""
        return False

    def judge(self, answer: str, expected: Any) -> Verdict:
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            value = _json_of(answer)
        except (ValueError, RecursionError):
            return wrong("not JSON")
        try:
            error = best_match(expected.iter_errors(value))
        except Unresolvable as problem:
            raise DataError(f"schema: a reference isn't in it: {problem}") from None
        except TimeoutError:
            return wrong("timeout")
        except RecursionError:
            return wrong("too deep")
        except OverflowError:  # multipleOf of a number beyond floating point
            return wrong("number too large")
        if error is None:
            return RIGHT
        path = re.sub(r"\[\d+\]", "[]", error.json_path)
        return wrong(f"schema: {path} ({error.validator})")


def _validator(schema: Any, what: str) -> Any:
    """Return a validator that fetches nothing: a reference has to be in the schema."""
    import jsonschema
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise DataError(f"{what}: not a JSON Schema: {error.message}") from None
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().resolver_with_root(resource)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise DataError(
                f"{what}: refers to {reference!r}, which isn't in it; nothing is fetched"
            ) from None
    kind = jsonschema.validators.extend(
        kind, {"pattern": _pattern, "patternProperties": _pattern_properties}
    )
    validator = kind(schema, registry=Registry())
    try:
        validator.is_valid(None)
    except RecursionError:
        raise DataError(f"{what}: a reference leads to itself without end") from None
    except Unresolvable as error:
        raise DataError(f"{what}: a reference isn't in it: {error}") from None
    return validator


def _pattern(validator: Any, pattern: str, value: Any, _: Any) -> Iterator[Any]:
    """Check a text as jsonschema does, within a limit of time."""
    from jsonschema.exceptions import ValidationError

    if validator.is_type(value, "string") and not find_all(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, schemas: Any, value: Any, _: Any) -> Iterator[Any]:
    """Check the values of names that match as jsonschema does, within a limit of time."""
    if not validator.is_type(value, "object"):
        return
    for pattern, schema in schemas.items():
        for name, item in value.items():
            if find_all(pattern, name):
                yield from validator.descend(item, schema, path=name, schema_path=pattern)


def _references(schema: Any) -> list[str]:
    """Return the references of a schema, without those of parts that have an address of their own."""
    if isinstance(schema, list):
        return [name for item in schema for name in _references(item)]
    if not isinstance(schema, Mapping):
        return []
    names = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    parts = [part for part in schema.values() if not (isinstance(part, Mapping) and "$id" in part)]
    return names + [name for part in parts for name in _references(part)]


def _json_of(answer: str) -> Any:
    """Return the JSON of an answer, or of its last code fence.

    Raises:
        ValueError: there is none.
    """
    try:
        return json.loads(answer, parse_constant=_refuse)
    except ValueError:
        block = last_block(answer)
        if block is None:
            raise
        return json.loads(block, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} isn't JSON")
