"""Findings are bounded in memory and complete in number; each code is explained, in the code and in the docs."""

import ast
import re
from pathlib import Path

from dualign.data.faults import CODES
from dualign.doctor.findings import MAX_LISTED, Finding, Findings, explanation_groups, explanations

ROOT = Path(__file__).parents[2]


def test_every_reason_for_which_a_row_is_dropped_is_explained() -> None:
    assert set(CODES) <= set(explanations())


def test_every_code_that_a_check_gives_is_explained_and_every_explanation_is_given() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "dualign" / "doctor").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    words = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert set(explanations()) - set(CODES) <= words
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    faults = [call for call in calls if ast.unparse(call.func) == "Finding"]
    given = {call.args[0].value for call in faults if isinstance(call.args[0], ast.Constant)}
    assert len(given) > 50 and given <= set(explanations())


def test_the_page_lists_every_code_with_what_it_means_and_the_fix() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)
    listed = {code: (severity, *rest) for code, severity, *rest in rows}
    told = {
        code: (finding.severity, finding.summary, finding.means, finding.fix)
        for code, finding in explanations().items()
    }
    assert listed == told
    assert re.findall(r"^## (\w+)$", page, flags=re.MULTILINE) == [
        noun.capitalize() for noun in explanation_groups()
    ]


def test_all_findings_are_counted_and_the_first_are_kept() -> None:
    findings = Findings()
    for row in range(MAX_LISTED + 5):
        findings.add(Finding("broken_text", "made"), source="rows", row=row)
    (group,) = findings.groups()
    assert findings.counts[group] == MAX_LISTED + 5
    assert [finding.row for finding in findings.all()] == list(range(MAX_LISTED))


def test_errors_come_first_and_a_place_may_be_worse_than_its_code() -> None:
    findings = Findings()
    findings.add(Finding("think_tag_in_prompt", "made"), source="rows")
    findings.add(Finding("date_leak", "made", "error"), source="template")
    findings.add(Finding("broken_text", "made"), source="rows")
    assert [finding.severity for finding in findings.groups()] == ["error", "warning", "info"]
    assert findings.errors == 1
