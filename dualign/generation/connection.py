"""The client of an endpoint: the package `openai`, with the key from the environment.

No key is shown: it is taken out of whatever the server says.
"""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dualign.errors import EvaluationError
from dualign.generation.config import Endpoint
from dualign.generation.preflight import key_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

_NO_KEY = "none"  # the client asks for some key, and must not take that of another server from the environment
_CONNECT_SECONDS = 20
_SHOWN = 300  # characters of what a server says


class Connection:
    """How to reach an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Find the key.

        Raises:
            EvaluationError: the package or the key is missing, or the settings hold the key.
        """
        self.endpoint, self._key = endpoint, key_of(endpoint)
        import openai

        self._openai = openai

    def client(self) -> "AsyncOpenAI":
        """Return a client; whoever asks for it decides what is tried again."""
        return self._openai.AsyncOpenAI(
            **self._options(), http_client=self._http(self._openai.DefaultAsyncHttpxClient)
        )

    def blocking_client(self) -> "OpenAI":
        """Return a client for one request at a time."""
        return self._openai.OpenAI(
            **self._options(), http_client=self._http(self._openai.DefaultHttpxClient)
        )

    def only_model(self) -> str:
        """Return the name of the only model that the server lists.

        Raises:
            EvaluationError: it lists none or several, or doesn't answer.
        """
        try:
            with self.blocking_client() as client:
                text = client.with_options(max_retries=3).get("/models", cast_to=str)
        except self._openai.OpenAIError as error:
            raise EvaluationError(
                f"{self.endpoint.url}: asked for its models, as no name is given: {self.words(error)}"
            ) from None
        try:
            names = [str(entry["id"]) for entry in json.loads(text)["data"]]
        except (ValueError, KeyError, TypeError):
            raise EvaluationError(
                f"{self.endpoint.url}: its list of models can't be read: {self.clean(text)}; give the "
                "model's name"
            ) from None
        if len(names) != 1:
            listed = ", ".join(names[:20]) or "none"
            raise EvaluationError(
                f"{self.endpoint.url}: expected one model, found {listed}; give its name, as "
                f"{{url: {self.endpoint.url}, name: {names[0] if names else 'NAME'}}}"
            )
        return names[0]

    def words(self, error: Exception) -> str:
        """Return what went wrong, without the key."""
        if isinstance(error, self._openai.APIStatusError):
            return self.clean(f"{error.status_code} {_said(error.response.text)}")
        cause = f": {error.__cause__}" if error.__cause__ else ""
        return self.clean(f"{error}{cause}")

    def clean(self, text: str) -> str:
        """Return a server's text for a message: one line, not long, without the key."""
        text = " ".join(text.split())
        if self._key is not None:
            text = text.replace(self._key, "(the key)")
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."

    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.endpoint.base,
            "api_key": self._key or _NO_KEY,
            "default_headers": self._headers(),
            "max_retries": 0,
            "timeout": self.endpoint.timeout_seconds,
        }

    def _headers(self) -> dict[str, Any]:
        """Return headers that keep those of the client's own variables, meant for another server, back."""
        lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
        names = [line.partition(":")[0].strip() for line in lines if ":" in line]
        others = ("OpenAI-Organization", "OpenAI-Project", *names)
        return {
            **{name: self._openai.Omit() for name in others if name.lower() != "authorization"},
            "Authorization": f"Bearer {self._key or _NO_KEY}",
        }

    def _http(self, client: Any) -> Any:
        """Return an HTTP client; a server on this machine isn't reached through a proxy."""
        limit = self.endpoint.timeout_seconds
        timeout = self._openai.Timeout(limit, connect=min(_CONNECT_SECONDS, limit))
        return client(
            base_url=self.endpoint.base, timeout=timeout, trust_env=not self.endpoint.is_local
        )


def _said(text: str) -> str:
    """Return the message in a server's JSON, else its text."""
    try:
        reply = json.loads(text)
    except ValueError:
        return text
    error = reply.get("error", reply) if isinstance(reply, Mapping) else reply
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message or text)
