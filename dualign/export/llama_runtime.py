"""llama.cpp with an exported file loaded: its tokenizer, template engine and numbers.

xllamacpp contains llama.cpp's server, with the template engine of llama-server, LM Studio and
Ollama; it is called over the loopback. llama-cpp-python renders the embedded template with jinja2,
as its own chat handler does.
"""

import json
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dualign.checkpoints.shards import cpu_count
from dualign.errors import CheckpointError
from dualign.export.ggml import INSTALL

RUNTIMES = {"xllamacpp": "xllamacpp", "llama-cpp-python": "llama_cpp"}
"""Name -> module."""
_TIMEOUT = 600  # seconds for one answer
_LOG_TRIES = 40
_LAST_LINE = "exiting due to"
_LOG_PREFIX = re.compile(r"^[\d.]+ \w +\w+ *(\w*: )*")
_LOG_ADVICE = re.compile(r"--no-jinja|exiting due to|^-+$")
_F32 = 0  # ggml's type float32: a rounded KV cache would change the numbers that are compared


@dataclass(frozen=True, slots=True)
class GreedyToken:
    """A greedy token and its lead over the second best in nats.

    The lead is None for a token inside a character, for which llama.cpp's server lists none.
    """

    token: int
    margin: float | None


class LlamaRuntime(Protocol):
    """A loaded file."""

    def prompt(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> str:
        """Render the conversation with the embedded template, up to the answer."""

    def tokens(self, prompt: str) -> list[int]:
        """Tokenize a rendered prompt, as in a chat."""

    def greedy(self, tokens: Sequence[int], count: int) -> list[GreedyToken]:
        """Return the next tokens, at most `count`; the last may be an end of turn."""

    def close(self) -> None: ...


def installed() -> list[str]:
    """Return the names of the installed runtimes."""
    return [name for name, module in RUNTIMES.items() if find_spec(module)]


def load(file: Path, runtime: str, *, context: int) -> LlamaRuntime:
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
    """llama.cpp's threads spin while they wait: one too many costs more than one too few."""
    return int(os.environ.get("OMP_NUM_THREADS") or cpu_count())


def _server_settings(file: Path, context: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = 0  # the comparison is made on the CPU
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.hostnames = ["127.0.0.1"]
    return params


def _reason(params: Any) -> str:
    """Load again with llama.cpp's log, which alone says why it can't; "" if it doesn't say."""
    import xllamacpp

    params.verbosity = 1
    before = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            with suppress(RuntimeError):
                xllamacpp.Server(params)
            for _ in range(_LOG_TRIES):  # a thread writes the log
                log.seek(0)
                text = log.read().decode("utf-8", "replace")
                if _LAST_LINE in text:
                    break
                time.sleep(0.05)
        finally:
            os.dup2(before, 2)
            os.close(before)
    lines = [_LOG_PREFIX.sub("", line).strip() for line in text.splitlines()]
    return "\n  ".join(line for line in lines if line and not _LOG_ADVICE.search(line))


class _Server:
    """llama.cpp's server, in this process."""

    def __init__(self, file: Path, context: int) -> None:
        import xllamacpp

        params = _server_settings(file, context)
        try:
            self._server: Any = xllamacpp.Server(params)
        except RuntimeError as error:
            raise CheckpointError(
                f"{file}: llama.cpp can't load it: {_reason(params) or error}"
            ) from error
        self._address = str(self._server.listening_address)

    def prompt(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> str:
        body: dict[str, Any] = {"messages": list(messages)}
        if kwargs:
            body["chat_template_kwargs"] = kwargs
        return str(self._post("/apply-template", body)["prompt"])

    def tokens(self, prompt: str) -> list[int]:
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def greedy(self, tokens: Sequence[int], count: int) -> list[GreedyToken]:
        body = {"prompt": list(tokens), "n_predict": count, "temperature": 0, "n_probs": 2}
        reply = self._post("/completion", {**body, "cache_prompt": False, "return_tokens": True})
        listed = reply.get("completion_probabilities", [])  # left out where it would be empty
        return greedy_tokens(reply["tokens"], listed)

    def close(self) -> None:
        self._server = None

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._address + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        # No proxy: the server runs in this process.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT) as response:
                reply: dict[str, Any] = json.loads(response.read())
                return reply
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")[:500]
            raise CheckpointError(f"llama.cpp, {path}: {text}") from error


def greedy_tokens(tokens: Sequence[int], listed: Sequence[Mapping[str, Any]]) -> list[GreedyToken]:
    """Join tokens with their leads; `listed` has only those that end a character."""
    rest = list(listed)
    joined = []
    for token in tokens:
        entry = rest.pop(0) if rest and rest[0]["id"] == token else None
        joined.append(GreedyToken(int(token), None if entry is None else _margin(entry)))
    return joined


def _margin(entry: Mapping[str, Any]) -> float:
    best, *rest = sorted((top["logprob"] for top in entry["top_logprobs"]), reverse=True)
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

    def prompt(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        formatter = Jinja2ChatFormatter(
            template=self._model.metadata["tokenizer.chat_template"],
            eos_token=self._text(self._model.token_eos()),
            bos_token=self._text(self._model.token_bos()),
        )
        return str(formatter(messages=list(messages), **kwargs).prompt)

    def tokens(self, prompt: str) -> list[int]:
        return [int(token) for token in self._model.tokenize(prompt.encode(), False, True)]

    def greedy(self, tokens: Sequence[int], count: int) -> list[GreedyToken]:
        self._model.reset()
        answer: list[GreedyToken] = []
        pending = list(tokens)
        while len(answer) < count and not (answer and self._ends_turn(answer[-1].token)):
            self._model.eval(pending)
            answer.append(self._best())
            pending = [answer[-1].token]
        return answer

    def close(self) -> None:
        self._model.close()

    def _best(self) -> GreedyToken:
        import llama_cpp

        pointer = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, (self._model.n_vocab(),))
        second, best = np.argpartition(logits, -2)[-2:]
        second, best = sorted((int(second), int(best)), key=lambda token: logits[token])
        return GreedyToken(best, float(logits[best] - logits[second]))

    def _ends_turn(self, token: int) -> bool:
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self._model.model)
        return bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))

    def _text(self, token: int) -> str:
        return str(self._model.detokenize([token], special=True).decode()) if token >= 0 else ""
