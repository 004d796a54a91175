"""Who answers: backends, and settings of an OpenAI-compatible endpoint. A recipe gives them where a model that answers is named.

    models: [stage:sft, {url: "http://127.0.0.1:8000/v1", name: Qwen/Qwen3-32B}]
    model: {url: "https://api.example.com/v1", name: big, key_env: EXAMPLE_KEY, price_in: 0.4, price_out: 1.2}

An address alone is an endpoint that serves one model: `http://127.0.0.1:8080/v1`. Nothing heavy is
imported: recipes load from here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from dualign.config import Document, parse, parse_value
from dualign.errors import ConfigError
from dualign.switch import ENABLE_THINKING, KNOWN, Switch

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SECRET = re.compile(
    r"(?i)^token$|(^|[-_])(api[-_]?key|key|secret|passw(or)?d|credentials?|authorization|bearer|cookie|"
    r"(api|auth|access|bearer|secret)[-_]?token)$"
)
_LIMIT = "the limit of an answer is the stage's, and limit_field names its field"
_SETTING = "the stage has this setting, and reports name its value"
_OF_THE_STAGE = {
    "model": "the endpoint's `name` says it",
    "messages": "the rows are asked",
    "n": "one answer is read of a reply",
    "stream": "the endpoint's `stream` says it",
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "temperature": _SETTING,
    "top_p": _SETTING,
    "seed": "each request has a seed of its own; with one for all, samples of a prompt are the same",
}
"""Fields of a request that `body` can't set, and why not."""
_MAY_LACK = frozenset({"temperature", "top_p", "seed"})
"""Those of them that null may take out, for a server that doesn't know them."""
_WAYS = {
    "enable_thinking": ENABLE_THINKING,
    "thinking": KNOWN[1],
    "reasoning_effort": KNOWN[2],
    "system": Switch(think={"system": "/think"}, no_think={"system": "/no_think"}),
    "user": Switch(think={"user": "/think"}, no_think={"user": "/no_think"}),
    "none": Switch(),
}
Backend = Literal["transformers", "vllm"]
"""What a checkpoint in this process answers with."""
Way = Literal["enable_thinking", "thinking", "reasoning_effort", "system", "user", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, TGI, a hosted one."""

    url: str
    """base address, as `http://127.0.0.1:8000/v1`"""
    name: str | None = None
    """the model's name there; absent: the only one that the server lists"""
    key_env: str | None = None
    """the environment variable that holds the key; absent: no key is sent"""
    mode_switch: Way | Switch | None = None
    """what switches the modes: a variable of the server's template, reasoning_effort, /think and
    /no_think in the system or user text, none; or {think: {...}, no_think: {...}} of variables,
    `system`, `user` and `body`; absent: the task's or stage's switch, else enable_thinking
    """
    body: Mapping[str, Any] = field(default_factory=dict)
    """other fields of each request, such as top_k; null takes a field out"""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """the request's field for the limit of an answer"""
    thinking_budget_field: str | None = None
    """the request's field for a thinking budget: thinking_token_budget (vLLM), thinking_budget_tokens
    (llama.cpp), custom_params.thinking_budget (SGLang); absent: the endpoint has no budgets
    """
    stream: bool = False
    """answers come piece by piece, where a gateway ends connections on which nothing comes"""
    concurrency: int = 16
    """requests at a time"""
    requests_per_minute: float | None = None
    """requests started in a minute at most; Retry-After is kept anyway"""
    timeout_seconds: float = 600.0
    """for one answer"""
    tries: int = 6
    """of one request, if the server is busy, fails, or answers garbage"""
    max_wait_seconds: float = 300.0
    """longest wait between two tries, and the longest Retry-After that is waited for"""
    max_failed: float = 0.05
    """share of the requests that may stay without an answer before the stage ends"""
    max_total_tokens: int | None = None
    """tokens of all prompts and answers of the stage; no request starts that could exceed it"""
    price_in: float | None = None
    """price of a million tokens of prompts"""
    price_out: float | None = None
    """price of a million tokens of answers"""
    max_cost: float | None = None
    """bound of the stage's cost by these prices; no request starts that could exceed it"""

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name or self.url

    @property
    def base(self) -> str:
        """The base address; /v1 is the path of an address without one."""
        return self.url.rstrip("/") + ("" if urlsplit(self.url).path.strip("/") else "/v1")

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, which isn't reached through a proxy."""
        host = urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    @property
    def switch(self) -> Switch | None:
        """What switches the modes, if the endpoint says so."""
        return _WAYS[self.mode_switch] if isinstance(self.mode_switch, str) else self.mode_switch

    @property
    def budget_problem(self) -> str | None:
        """Why traces can't be closed at a thinking budget; None if they can."""
        if self.thinking_budget_field is not None:
            return None
        return (
            "has no thinking_budget_field, which names the request's field for budgets: "
            "thinking_token_budget (vLLM), thinking_budget_tokens (llama.cpp), "
            "custom_params.thinking_budget (SGLang)"
        )

    @property
    def bounds_whole_traces(self) -> bool:
        """Whether `body` sends a thinking budget with every request."""
        part: Any = self.body if self.thinking_budget_field is not None else {}
        for name in (self.thinking_budget_field or "").split("."):
            part = part.get(name) if isinstance(part, Mapping) else None
        return part is not None

    def cost(self, prompt_tokens: float, answer_tokens: float) -> float | None:
        """Return what tokens cost; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (self.price_in * prompt_tokens + self.price_out * answer_tokens) / 1e6

    def problems(self) -> list[tuple[str, str]]:
        issues = [*_address_problems(self.url), *_key_problems(self.key_env)]
        issues += [*_body_problems("body", self.body), *_switch_problems(self.mode_switch)]
        for key in ("concurrency", "tries"):
            if getattr(self, key) < 1:
                issues.append((key, f"expected 1 or more, found {getattr(self, key)}"))
        for key in ("requests_per_minute", "timeout_seconds", "max_total_tokens", "max_cost"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                issues.append((key, f"expected more than 0, found {value}"))
        for key in ("max_wait_seconds", "price_in", "price_out"):
            value = getattr(self, key)
            if value is not None and value < 0:
                issues.append((key, f"expected 0 or more, found {value}"))
        if not 0 <= self.max_failed <= 1:
            issues.append(("max_failed", f"expected a share of 0 to 1, found {self.max_failed}"))
        if (self.price_in is None) != (self.price_out is None):
            issues.append(("price_in", "price_in and price_out go together: give both"))
        if self.max_cost is not None and self.cost(0, 0) is None:
            issues.append(("max_cost", "needs price_in and price_out"))
        return issues


def endpoint_of(model: "str | Endpoint") -> Endpoint | None:
    """Return the endpoint that is meant; None for any other model."""
    if isinstance(model, Endpoint):
        return model
    return Endpoint(url=model) if model.startswith(("http://", "https://")) else None


def model_label(model: "str | Endpoint") -> str:
    """Return a model as it was named, and of an endpoint its name in tables."""
    return model.label if isinstance(model, Endpoint) else model


def model_problems(model: "str | Endpoint", key: str) -> list[tuple[str, str]]:
    """Return what is wrong with an address that stands for a model; an Endpoint checks itself."""
    endpoint = endpoint_of(model) if isinstance(model, str) else None
    return [(key, message) for _, message in endpoint.problems()] if endpoint else []


def read_model(value: Any, where: str) -> "str | Endpoint":
    """Return a model as the command line or a caller names it: an endpoint's keys, also as YAML, or text.

    Raises:
        ConfigError: with every problem; `where` names the value.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_value(value)
        except ConfigError:  # its message would show a key that stands there
            raise ConfigError(
                f"{where}: not YAML: expected {{url: ..., name: ..., key_env: ...}}"
            ) from None
    if isinstance(value, Mapping):
        document = Document(file=where)
        endpoint = parse(Endpoint, dict(value), document)
        document.raise_problems()
        assert endpoint is not None, "no problems means an endpoint"
        return endpoint
    model = value if isinstance(value, Endpoint) else str(value)
    issues = model.problems() if isinstance(model, Endpoint) else model_problems(model, where)
    if issues:
        raise ConfigError("\n".join(f"{key}: {message}" for key, message in issues))
    return model


def _address_problems(url: str) -> list[tuple[str, str]]:
    """Check the address without showing it: a user, a password or a query may be a key."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:  # its message shows a part of what may be a password
        return [("url", "not an address (not shown): expected http://HOST:PORT/v1")]
    if parts.username or parts.password or parts.query or parts.fragment:
        return [
            (
                "url",
                "holds a user, a password, a query or a fragment (not shown): a key never stands in a "
                "recipe; put it into an environment variable, and its name into key_env",
            )
        ]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        if "@" in url:
            return [("url", "expected http://HOST:PORT/v1 (what stands there isn't shown)")]
        return [("url", f"expected http://HOST:PORT/v1 or https://HOST/v1, found {url!r}")]
    if parts.path.rstrip("/").endswith(("/completions", "/models")):
        return [("url", f"expected the base address, as {parts.scheme}://{parts.netloc}/v1")]
    return []


def _key_problems(key_env: str | None) -> list[tuple[str, str]]:
    if key_env is None or _VARIABLE.fullmatch(key_env):
        return []
    return [
        (
            "key_env",
            "expected the name of an environment variable in capitals, such as OPENAI_API_KEY; what "
            "stands there isn't shown, since it may be the key itself",
        )
    ]


def _body_problems(key: str, body: Any) -> list[tuple[str, str]]:
    """Check other fields of a request: no keys, nothing that the stage says, nothing but JSON."""
    if not isinstance(body, Mapping):
        return [(key, "expected fields of the request as {name: value}")]
    issues = [
        (f"{key}.{name}", "looks like a key: put it into an environment variable named by key_env")
        for name in _names(body)
        if _SECRET.search(name.rpartition(".")[2])
    ]
    issues += [
        (f"{key}.{name}", f"{why}: leave it out{', or null' if name in _MAY_LACK else ''}")
        for name, why in _OF_THE_STAGE.items()
        if name in body and not (name in _MAY_LACK and body[name] is None)
    ]
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        issues.append((key, f"expected what JSON knows: {error} (quote it to make it text)"))
    return issues


def _switch_problems(way: Way | Switch | None) -> list[tuple[str, str]]:
    if not isinstance(way, Switch):
        return []
    bodies = {mode: way.of(mode).get("body", {}) for mode in ("think", "no_think")}
    return [
        issue
        for mode, body in bodies.items()
        for issue in _body_problems(f"mode_switch.{mode}.body", body)
    ]


def _names(value: Any, place: str = "") -> list[str]:
    """Return the names in nested mappings, dotted."""
    if isinstance(value, Mapping):
        names = []
        for name, item in value.items():
            names += [f"{place}{name}", *_names(item, f"{place}{name}.")]
        return names
    return [name for item in value for name in _names(item, place)] if _is_list(value) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
