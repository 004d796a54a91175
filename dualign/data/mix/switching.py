"""Rows of two modes that the template asks in one way: a model can't learn to switch from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dualign.data.conversation import MODES
from dualign.data.text.template import ChatTemplate
from dualign.errors import TemplateError
from dualign.switch import ADVICE, tried

_FEW = 8
"""Rows that switch by texts of their own have no more of them in a mode."""


@dataclass(kw_only=True, slots=True)
class PromptSettings:
    """The settings (`ChatTemplate.setting`) of rows by mode, each with the first row that has it."""

    first: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, mode: str, setting: int, place: str) -> None:
        """Count a row; `place` names it."""
        if setting:
            self.first.setdefault((mode, setting), place)

    def shared(self) -> tuple[str, str] | None:
        """Return a think row and a no_think row of one setting, or with nothing that switches them:
        many system texts in both modes are those of the rows, and no switch.
        """
        think, no_think = (
            {setting: place for (of, setting), place in self.first.items() if of == mode}
            for mode in MODES
        )
        others = {setting >> 1: place for setting, place in no_think.items()}
        for setting, place in think.items():
            if setting >> 1 in others:
                return place, others[setting >> 1]
        alike = [[place for key, place in side.items() if key & 1] for side in (think, no_think)]
        return (alike[0][0], alike[1][0]) if min(map(len, alike)) > _FEW else None


def check_switch(settings: PromptSettings, template: ChatTemplate) -> None:
    """Refuse rows of both modes that the template asks in one way.

    Raises:
        TemplateError: names such a row of each mode, and what was tried.
    """
    if pair := settings.shared():
        raise TemplateError(same_prompt(pair, template))


def same_prompt(pair: Sequence[str], template: ChatTemplate) -> str:
    """Say that two rows of different modes are asked in one way."""
    think, no_think = pair
    return (
        f"{think} is think and {no_think} is no_think, but template {template.name!r} asks both in one "
        "way, so a model can't know which mode is meant. Tried: "
        f"{tried(template.named_switch)}. {ADVICE}."
    )
