"""The text of a pack's card: pack.md.jinja, filled with its adapters."""

import re
from dataclasses import dataclass
from pathlib import Path

from dualign.data.conversation import MODES
from dualign.generation.vllm import max_lora_rank
from dualign.models.prompts import saved_switch
from dualign.publish.release import Release
from dualign.report.render import environment
from dualign.version import __version__

_QUESTION = "Add 17, 28 and 5."
_TEMPLATES = environment(Path(__file__).parent)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackUsage:
    """The facts of the code snippets."""

    repo_id: str
    base: str
    revision: str
    adapters: tuple[tuple[str, int, tuple[str, ...]], ...]
    """(name, rank, why vLLM doesn't serve it)"""
    folder: str
    allowed: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(check, its message, the adapters that fail it)"""
    release: Release
    """of the first adapter: what switches the modes of all"""

    @property
    def served(self) -> list[str]:
        return [name for name, _, reasons in self.adapters if not reasons]

    @property
    def max_lora_rank(self) -> int:
        """The --max-lora-rank of vLLM that holds every adapter that it serves."""
        rank = max((rank for _, rank, reasons in self.adapters if not reasons), default=1)
        return max_lora_rank(rank) or rank

    @property
    def prompts(self) -> list[tuple[str, str, str]]:
        """Return (mode, messages, arguments of the template) as Python."""
        switch = self.release.request.switch or saved_switch(self.release.lineage.run.path)
        listed: list[tuple[str, str, str]] = []
        for mode in MODES:
            turns = switch.with_system([{"role": "user", "content": _QUESTION}], mode)
            variables = switch.variables(mode)
            options = "".join(f"{name}={value!r}, " for name, value in variables.items())
            listed.append((mode, repr(turns), options))
        return listed


def render_pack(usage: PackUsage) -> str:
    """Return the Markdown of the card."""
    text = _TEMPLATES.get_template("pack.md.jinja").render(usage=usage, version=__version__)
    return re.sub(r"\n{3,}", "\n\n", text)
