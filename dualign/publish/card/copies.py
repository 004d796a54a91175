"""The part of a card about a copy in fewer bits that lies beside the weights.

It stands between marks, so that it stays with the copy when the weights' card is made anew.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from dualign.publish.card.body import template
from dualign.publish.card.exported import export_facts
from dualign.publish.checklist import CheckResult
from dualign.publish.exported import Export
from dualign.publish.release import LoadTestAnswer

_MARKED = re.compile(
    r'<!-- dualign: copy in "(?P<folder>[^"]*)" -->.*?<!-- dualign: end of copy -->', re.DOTALL
)


def render_copy(
    export: Export,
    folder: Path,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    questions: Sequence[str],
) -> str:
    """Return the Markdown of a copy.

    Args:
        folder: its staged files.
        checks: those of this copy.
        questions: what its snippets may ask.
    """
    facts = export_facts(export, folder, checks, answers, questions)
    text = template("copy.md.jinja").render(**facts)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def copy_texts(card: str) -> dict[str, str]:
    """Return folder -> the part of a card about the copy in it."""
    return {match["folder"]: match[0] for match in _MARKED.finditer(card)}
