"""Why an endpoint can't be asked from this machine, known before the first stage starts."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from dualign.errors import EvaluationError
from dualign.generation.config import Endpoint, endpoint_of

_MODELS = ("model", "rejected_model", "revise.model", "judge.model", "models")
_SHORTEST = 8  # characters of a key that can't be a part of a name by chance
_CONNECT_SECONDS = 3

logger = logging.getLogger(__name__)


def issues(stage: Any) -> list[tuple[str, str]]:
    """Return why a stage's endpoints can't be asked, as (key, message); nothing is sent.

    A server that isn't there is a warning: it may be started before the stage is.
    """
    reasons = []
    for name in _MODELS:
        for endpoint in _endpoints(_setting(stage, name)):
            if message := _problem(endpoint):
                reasons.append((name, message))
            elif silence := _silence(endpoint):
                logger.warning(
                    "stage %s: %s: no server can be reached at %s now (%s): start it before the stage",
                    stage.name, name, endpoint.url, silence,
                )  # fmt: skip
    return reasons


def key_of(endpoint: Endpoint) -> str | None:
    """Return the key from the environment; None if the endpoint has none.

    Raises:
        EvaluationError: the package or the key is missing, or the settings hold the key.
    """
    if message := _problem(endpoint):
        raise EvaluationError(message)
    return None if endpoint.key_env is None else _value(endpoint.key_env)


def _setting(stage: Any, name: str) -> Any:
    """Return a stage's setting by its dotted name; None if it has none."""
    return reduce(lambda settings, part: getattr(settings, part, None), name.split("."), stage)


def _endpoints(models: Any) -> Iterator[Endpoint]:
    for model in models if isinstance(models, tuple) else (models,):
        endpoint = None if model is None else endpoint_of(model)
        if endpoint is not None:
            yield endpoint


def _problem(endpoint: Endpoint) -> str | None:
    if find_spec("openai") is None:
        return f"{endpoint.label}: an endpoint needs a package: pip install 'dualign[endpoint]'"
    if endpoint.key_env is None:
        return None
    key = _value(endpoint.key_env)
    if not key:
        return (
            f"{endpoint.label}: the environment variable {endpoint.key_env} isn't set, and key_env names "
            "it for the key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        return f"{endpoint.label}: {endpoint.key_env} holds signs that no key has (not shown)"
    if len(key) >= _SHORTEST and key in json.dumps(asdict(endpoint), default=str):
        return (
            f"the settings of an endpoint hold the key itself (not shown): leave it in {endpoint.key_env} "
            "alone"
        )
    return None


def _silence(endpoint: Endpoint) -> str:
    """Return why no connection opens; "" if one does, or if it would go through a proxy."""
    if getproxies() and not endpoint.is_local:
        return ""
    parts = urlsplit(endpoint.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _value(variable: str) -> str:
    return os.environ.get(variable, "").strip()
