"""llama.cpp itself, loaded with an exported file: its tokenizer, its template engine, its numbers.

xllamacpp has llama.cpp's server inside, with the template engine that llama-server, LM Studio and
Ollama use; its calls go over the loopback. llama-cpp-python renders the embedded template with
jinja2, as its own chat handler does.
"""

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dualign.checkpoints.shards import processors
from dualign.errors import CheckpointError
from dualign.export.ggml import INSTALL

RUNTIMES = {"xllamacpp": "xllamacpp", "llama-cpp-python": "llama_cpp"}
"""what it's called -> the module"""
_TIMEOUT = 600  # seconds for one answer
_F32 = 0  # ggml's number for float32: the cache adds no rounding of its own to what is compared


@dataclass(frozen=True, slots=True)
class Choice:
    """A greedy token, and by how many nats it beat the next; None inside a character, where
    llama.cpp's server keeps that to itself.
    """

    token: int
    margin: float | None


class Runtime(Protocol):
    """A loaded file."""

    def prompt(self, messages: Sequence[Mapping[str, str]], **given: Any) -> str:
        """The conversation through the embedded template, ready for an answer."""

    def tokens(self, prompt: str) -> list[int]:
        """A rendered prompt's tokens, as a chat's are made."""

    def greedy(self, tokens: Sequence[int], count: int) -> list[Choice]:
        """At most `count` tokens that follow; the last may be an end of turn."""

    def close(self) -> None: ...


def installed() -> list[str]:
    """Names of the runtimes that are here."""
    return [name for name, module in RUNTIMES.items() if find_spec(module)]


def load(file: Path, runtime: str, *, context: int) -> Runtime:
    """Load a GGUF file.

    Raises:
        CheckpointError: the runtime isn't installed, or can't read the file.
    """
    if runtime not in installed():
        raise CheckpointError(f"{runtime} isn't installed: {INSTALL}")
    if runtime == "xllamacpp":
        return _Server(file, context)
    return _Bindings(file, context)


def _threads() -> int:
    """llama.cpp's threads spin while they wait, so one too many costs more than one too few."""
    return int(os.environ.get("OMP_NUM_THREADS") or processors())


class _Server:
    """llama.cpp's server, in this process."""

    def __init__(self, file: Path, context: int) -> None:
        import xllamacpp

        given = xllamacpp.CommonParams()
        given.model.path = str(file)
        given.n_ctx = context
        given.n_parallel = 1
        given.n_gpu_layers = 0  # the CPU's sums are the ones that are compared
        given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        given.warmup = False
        given.verbosity = 0
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = _threads()
        given.hostnames = ["127.0.0.1"]
        try:
            self._server: Any = xllamacpp.Server(given)
        except RuntimeError as error:
            raise CheckpointError(f"{file}: llama.cpp can't load it: {error}") from error
        self._address = str(self._server.listening_address)

    def prompt(self, messages: Sequence[Mapping[str, str]], **given: Any) -> str:
        body: dict[str, Any] = {"messages": list(messages)}
        if given:
            body["chat_template_kwargs"] = given
        return str(self._post("/apply-template", body)["prompt"])

    def tokens(self, prompt: str) -> list[int]:
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return [int(one) for one in self._post("/tokenize", body)["tokens"]]

    def greedy(self, tokens: Sequence[int], count: int) -> list[Choice]:
        body = {"prompt": list(tokens), "n_predict": count, "temperature": 0, "n_probs": 2}
        made = self._post("/completion", {**body, "cache_prompt": False, "return_tokens": True})
        return choices(made["tokens"], made["completion_probabilities"])

    def close(self) -> None:
        self._server = None

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._address + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        # Not through a proxy that the environment names: it is this process that answers.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")[:500]
            raise CheckpointError(f"llama.cpp, {path}: {said}") from error


def choices(tokens: Sequence[int], listed: Sequence[Mapping[str, Any]]) -> list[Choice]:
    """All tokens; only those that end a character are listed with their probabilities."""
    rest = list(listed)
    found = []
    for token in tokens:
        entry = rest.pop(0) if rest and rest[0]["id"] == token else None
        found.append(Choice(int(token), None if entry is None else _margin(entry)))
    return found


def _margin(entry: Mapping[str, Any]) -> float:
    best, *rest = sorted((one["logprob"] for one in entry["top_logprobs"]), reverse=True)
    return float(best - rest[0]) if rest else math.inf


class _Bindings:
    """llama-cpp-python."""

    def __init__(self, file: Path, context: int) -> None:
        import llama_cpp

        try:
            self._model: Any = llama_cpp.Llama(
                str(file),
                n_ctx=context,
                n_gpu_layers=0,
                type_k=_F32,
                type_v=_F32,
                n_threads=_threads(),
                n_threads_batch=_threads(),
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file}: llama-cpp-python can't load it: {error}") from error

    def prompt(self, messages: Sequence[Mapping[str, str]], **given: Any) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        formatter = Jinja2ChatFormatter(
            template=self._model.metadata["tokenizer.chat_template"],
            eos_token=self._text(self._model.token_eos()),
            bos_token=self._text(self._model.token_bos()),
        )
        return str(formatter(messages=list(messages), **given).prompt)

    def tokens(self, prompt: str) -> list[int]:
        return [int(one) for one in self._model.tokenize(prompt.encode(), False, True)]

    def greedy(self, tokens: Sequence[int], count: int) -> list[Choice]:
        self._model.reset()
        made: list[Choice] = []
        pending = list(tokens)
        while len(made) < count and not (made and self._ends(made[-1].token)):
            self._model.eval(pending)
            best, second = self._best_two()
            made.append(Choice(best, second))
            pending = [best]
        return made

    def close(self) -> None:
        self._model.close()

    def _best_two(self) -> tuple[int, float]:
        import llama_cpp

        pointer = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, (self._model.n_vocab(),))
        second, best = np.argpartition(logits, -2)[-2:]
        second, best = sorted((int(second), int(best)), key=lambda one: logits[one])
        return best, float(logits[best] - logits[second])

    def _ends(self, token: int) -> bool:
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self._model.model)
        return bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))

    def _text(self, token: int) -> str:
        return str(self._model.detokenize([token], special=True).decode()) if token >= 0 else ""
