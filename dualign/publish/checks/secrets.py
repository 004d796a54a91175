"""Search for tokens, keys and paths of this machine. Leaks name the place, never the text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualign.publish.redaction import MACHINE_PATH

_PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret": r"(?i)aws_secret_access_key[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a key in a variable": (
        r"\b(?:HF_TOKEN|HUGGING_FACE_HUB_TOKEN|WANDB_API_KEY|OPENAI_API_KEY|ANTHROPIC_API_KEY|"
        r"COMET_API_KEY)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9_-]{16,}"
    ),
    "a password in an address": r"\bhttps?://[^/\s:@\"']+:[^/\s@\"']+@[^/\s]+",
}
_SECRETS = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
_BINARY = (".safetensors", ".png", ".model", ".gguf", ".parquet")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
_HEADER = 1 << 20  # bytes of a binary file that are searched: the header has the free text


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """A line that must not leave. Its text isn't kept."""

    file: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} holds {self.kind}"


def secrets_in(folder: Path, files: Sequence[str], *, token: str | None = None) -> Iterator[Leak]:
    """Yield every line that looks like a token or a key, or holds the user's `token`."""
    for name in files:
        for number, line in enumerate(_lines(folder / name), start=1):
            for kind in secret_kinds(line, token=token):
                yield Leak(file=name, line=number, kind=kind)


def secret_kinds(text: str, *, token: str | None = None) -> list[str]:
    """Return the kinds of secret that a text holds."""
    kinds = [kind for kind, pattern in _SECRETS.items() if pattern.search(text)]
    if token and token in text:
        kinds.append("the token that you are logged in with")
    return kinds


def paths_in(folder: Path, files: Sequence[str], *, folders: Sequence[str] = ()) -> Iterator[Leak]:
    """Yield every line with a path of this machine, or with one of its `folders`.

    Vocabularies are skipped: `/tmp/` is a token of many of them.
    """
    for name in files:
        if name.endswith(_BINARY) or Path(name).name in _VOCABULARY:
            continue
        for number, line in enumerate(_lines(folder / name), start=1):
            if any(place in line for place in folders) or MACHINE_PATH.search(line):
                yield Leak(file=name, line=number, kind="a path of this machine")


def _lines(file: Path) -> Iterator[str]:
    if not file.name.endswith(_BINARY):
        yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
        return
    with file.open("rb") as stream:
        yield stream.read(_HEADER).decode("utf-8", errors="replace")
