"""Every planted defect of a template is found before any row is read; the default has none."""

from pathlib import Path
from typing import Any

import pytest

from dualign.data.text.template import ChatTemplate, load_template
from dualign.doctor.template import check_template, opening
from dualign.errors import TemplateError
from tests.data.text import families
from tests.doctor import defective_templates as made
from tests.doctor.conftest import Examine
from tests.doctor.defective_rows import no_think_row, think_row, tool_row


def codes(template: ChatTemplate, **given: Any) -> dict[str, str | None]:
    return {finding.code: finding.own_severity for finding in check_template(template, **given)}


@pytest.mark.parametrize("planted", made.PLANTED, ids=lambda item: item.make.__name__)
def test_a_planted_defect_of_a_template_is_found(planted: made.Planted, tmp_path: Path) -> None:
    file = tmp_path / "made.jinja"
    file.write_text(planted.make(), encoding="utf-8")
    try:
        template = load_template(str(file))
    except TemplateError:
        assert planted.code == "template_unusable"
        return
    assert planted.code in codes(template)


def test_the_default_template_has_no_fault() -> None:
    assert codes(load_template("dualign"), modes={"think", "no_think"}) == {}


def test_a_dead_switch_is_an_error_where_rows_are_of_both_modes(examine: Examine) -> None:
    template = load_template("chatml")
    assert codes(template, modes={"think"})["mode_switch_dead"] is None
    findings, _ = examine({"rows": [think_row(), no_think_row()]}, template="chatml")
    (dead,) = [entry for entry in findings.all() if entry.code == "mode_switch_dead"]
    assert dead.severity == "error" and "rows, row 0 is think" in dead.message
    findings, _ = examine({"rows": [think_row()]}, template="chatml")
    assert "mode_switch_dead" not in {entry.code for entry in findings.all()}


@pytest.mark.parametrize("name", ["GRANITE", "GPT_OSS", "NEMOTRON", "DEEPSEEK", "NEMOTRON_NANO"])
def test_a_known_switch_isn_t_dead(name: str, examine: Examine, tmp_path: Path) -> None:
    file = tmp_path / "family.jinja"
    file.write_text(getattr(families, name), encoding="utf-8")
    template = load_template(str(file))
    assert "mode_switch_dead" not in codes(template, modes={"think"})
    findings, _ = examine({"rows": [think_row(), no_think_row()]}, template=str(file))
    assert "mode_switch_dead" not in {entry.code for entry in findings.all()}


def test_a_system_text_without_a_system_role_is_found(examine: Examine, tmp_path: Path) -> None:
    file = tmp_path / "no_system.jinja"
    refusal = "{%- if messages[0].role == 'system' %}{{- raise_exception('none') }}{%- endif %}"
    file.write_text(refusal + families.PLAIN, encoding="utf-8")
    row = no_think_row()
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    findings, account = examine({"rows": [row, no_think_row(7)]}, template=str(file))
    (fault,) = [entry for entry in findings.all() if entry.code == "no_system_role"]
    assert fault.severity == "error" and fault.row == 0 and "system_into_user" in fault.message
    assert account["kept"] == 1


def test_a_pinned_date_is_no_leak() -> None:
    text = "{{- 'Today is ' + (date if date else strftime_now('%Y')) + '\n' }}" + made.shipped(
        "dualign"
    )
    leaking = ChatTemplate(name="made", text=text)
    assert "date_leak" in codes(leaking)
    pinned = ChatTemplate(name="made", text=text, template_kwargs={"date": "2025-07-01"})
    assert "date_leak" not in codes(pinned)


def test_openings_are_what_the_generation_prompt_adds() -> None:
    template = load_template("dualign")
    assert opening(template, "think") == "<|im_start|>assistant\n<think>\n"
    assert opening(template, "no_think") == "<|im_start|>assistant\n<think>\n\n</think>\n"


def _planted_file(folder: Path, text: str) -> str:
    (folder / "planted.jinja").write_text(text, encoding="utf-8")
    return str(folder / "planted.jinja")


def test_an_empty_block_that_the_prompt_does_not_hold_is_seen_among_the_supervised_tokens(
    examine: Examine, tmp_path: Path
) -> None:
    """As LLaMA-Factory and axolotl train hybrid models: the block belongs to the answer."""
    old = "{{- message.content + '<|im_end|>' }}\n        {%- endgeneration"
    block = "('' if enable_thinking else '<think>\n\n</think>\n') + "
    text = made.shipped("chatml").replace(old, old.replace("{{- ", "{{- " + block))
    findings, _ = examine({"rows": [no_think_row()]}, template=_planted_file(tmp_path, text))
    assert "empty_think_supervised" in {finding.code for finding in findings.all()}


def test_a_second_block_before_the_trace_is_seen(examine: Examine, tmp_path: Path) -> None:
    """trl 6361: the template puts an empty block before a turn that has one."""
    text = made.shipped("chatml").replace(
        "assistant\n' }}\n{%- endif", "assistant\n<think>\n' }}\n{%- endif"
    )
    text = text.replace("{%- generation %}", "{{- '<think>\n' }}{%- generation %}")
    findings, _ = examine({"rows": [think_row()]}, template=_planted_file(tmp_path, text))
    assert "thinking_doubled" in {finding.code for finding in findings.all()}


def test_a_trace_that_is_printed_twice_is_seen(examine: Examine, tmp_path: Path) -> None:
    """A template that knows reasoning_content and prints the content's head as well."""
    text = made.shipped("dualign").replace(
        "{{- state.thinking + ", "{{- state.thinking + ' ' + state.thinking + "
    )
    row = think_row()
    row["messages"][1]["reasoning_content"] = "One and one are two, as everyone knows."
    findings, _ = examine({"rows": [row]}, template=_planted_file(tmp_path, text))
    assert "thinking_doubled" in {finding.code for finding in findings.all()}


def test_a_template_that_leaves_out_a_tools_result_is_seen(
    examine: Examine, tmp_path: Path
) -> None:
    text = made.shipped("dualign").replace("message.role == 'tool'", "message.role == 'function'")
    text = text.replace(
        "{%- elif not (loop.first", "{%- elif message.role != 'tool' and not (loop.first"
    )
    findings, _ = examine({"rows": [tool_row()]}, template=_planted_file(tmp_path, text))
    assert "message_lost" in {finding.code for finding in findings.all()}


HUNYUAN = (
    "<|startoftext|>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}<|extra_4|>"
    "{% elif m.role == 'user' %}{{ m.content }}<|extra_0|>{% else %}{{ m.content }}<|eos|>{% endif %}{% endfor %}"
)


def test_a_system_block_that_has_an_end_of_its_own_is_closed() -> None:
    assert "system_not_closed" not in codes(ChatTemplate(name="made", text=HUNYUAN))


def test_a_template_that_needs_tools_is_judged_by_its_rows(
    examine: Examine, tmp_path: Path
) -> None:
    text = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + made.shipped(
        "dualign"
    )
    assert codes(ChatTemplate(name="made", text=text)) == {}
    file = _planted_file(tmp_path, text)
    findings, account = examine({"rows": [tool_row(), no_think_row()]}, template=file)
    assert account["kept"] == 1
    assert [finding.row for finding in findings.all() if finding.code == "template"] == [1]


def test_a_mode_that_no_row_has_is_no_error() -> None:
    """The prompt of the R1 distills opens a block in both modes: rows without a trace are refused."""
    template = ChatTemplate(
        name="made", text=made.of_another_family("deepseek_r1_distill_training")
    )
    assert "prompt_not_prefix" in codes(template)
    assert "prompt_not_prefix" not in codes(template, modes={"think"})


def test_a_refusal_shows_where_prompt_and_turn_part() -> None:
    """Qwen3's non-thinking variants open a block in the prompt of both modes."""
    text = made.shipped("chatml").replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n\\n' }}"
    )
    template = ChatTemplate(name="made", text=text)
    (message,) = {
        finding.message
        for finding in check_template(template, modes={"no_think"})
        if finding.code == "prompt_not_prefix"
    }
    assert message == (
        "no_think: after 'uestion<|im_end|>\\n<|im_start|>assistant\\n' the prompt goes on with "
        "'<think>\\n\\n', the turn with 'probeanswer<|im_end|>\\n'"
    )
