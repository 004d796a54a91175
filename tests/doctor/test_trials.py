"""A template alone: which kinds of rows it can train, for all templates that trl carries.

trl_templates.txt keeps the verdicts, a line for each template and mode: the template's hash, and a
letter for each kind of row in the order of `KINDS`. To write it anew, after looking at each change:

    python -m tests.doctor.test_trials > tests/doctor/trl_templates.txt
"""

import hashlib
import json
import re
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dualign.cli.main import main
from dualign.data.conversation import MODES
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.doctor.trials import TemplateTrials, try_rows
from dualign.errors import TemplateError
from tests.data.text import families

FOREIGN = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
TABLE = Path(__file__).with_name("trl_templates.txt")
KINDS = (
    "one turn", "two turns", "three turns", "system text", "system, three turns", "a call",
    "text and a call", "call, result, answer", "two calls", "system, call, result",
)  # fmt: skip
LETTERS = {
    "": "+",
    "template": "t",
    "no_system_role": "s",
    "tools_lost": "l",
    "message_lost": "m",
    "prompt_supervised": "p",
    "empty_think_supervised": "e",
    "thinking_doubled": "d",
    "think_left_open": "o",
    "boundary": "b",
    "kwargs_ignored": "k",
}
_MARKER = re.compile(r"<[^<>\s'\"{}]+>|\[/?[A-Z_]+\]")


def tokenizer_for(text: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the markers of a template as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    markers = sorted(set(_MARKER.findall(text)))
    tokenizer.add_tokens(
        [AddedToken(name, special="think" not in name, normalized=False) for name in markers]
    )
    return tokenizer


def tried(file: Path) -> TemplateTrials:
    tokenizer = tokenizer_for(file.read_text(encoding="utf-8"))
    return try_rows(tokenizer, load_template(str(file), tokenizer=tokenizer))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def lines_of(file: Path) -> list[str]:
    """The template's lines in the kept table."""
    head = f"{digest(file)} {file.stem}"
    try:
        trials = tried(file).trials
    except TemplateError:
        return [f"{head} unusable"]
    verdicts = {
        mode: "".join(LETTERS.get(trial.code, "?") for trial in trials if trial.mode == mode)
        for mode in MODES
    }
    return [f"{head} {mode} {verdicts[mode]}" for mode in MODES]


def test_the_templates_of_trl_train_the_kept_kinds_of_rows() -> None:
    """A template that another trl changed, or brings new, has no kept line and only has to run."""
    kept = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    known = {line.split()[0] for line in kept}
    lines = [line for file in FOREIGN for line in lines_of(file)]
    assert [line for line in lines if line.split()[0] in known] == [
        line for line in kept if line.split()[0] in {digest(file) for file in FOREIGN}
    ]
    assert all("?" not in line for line in lines)


def test_ours_trains_every_kind_in_both_modes() -> None:
    template = load_template("dualign")
    trials = try_rows(tokenizer_for(template.text), template)
    assert [trial.kind for trial in trials.trials] == [*KINDS, *KINDS]
    assert [trial for trial in trials.trials if trial.code] == []
    sample = trials.sample("no_think")
    assert sample is not None and sample.kind == "system, call, result"
    learnt = [label for label in sample.labels if label != IGNORE_INDEX]
    assert trials.tokenizer.decode(learnt).endswith(
        "</tool_call><|im_end|>Rain.<|im_end|>Four.<|im_end|>"
    )


def test_reasons_are_counted_by_mode() -> None:
    template = ChatTemplate(name="gemma", text=families.GEMMA)
    trials = try_rows(tokenizer_for(families.GEMMA), template)
    reasons = [(trial.mode, trial.code, count) for trial, count in trials.reasons()]
    assert ("think", "no_system_role", 3) in reasons and (
        "no_think",
        "no_system_role",
        3,
    ) in reasons
    assert trials.sample("think") is not None


def test_the_command_prints_a_table_the_reasons_and_a_row_of_each_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text(families.PLAIN, encoding="utf-8")
    assert main(["doctor", "--template", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "switch: none: both modes have one prompt" in shown
    assert re.search(r"^ two turns +trained +trained", shown, re.MULTILINE)
    assert re.search(r"^ a call +(\w+) +\1", shown, re.MULTILINE)
    assert "no_think, 5 rows: " in shown
    assert "⟦Four.<|im_end|>⟧" in shown and "⟦...⟧ is supervised" in shown
    assert "20 rows in, 10 kept, 10 dropped" in shown


def test_a_named_switch_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text(families.PLAIN, encoding="utf-8")
    words = "{think: {system: Think.}, no_think: {system: Answer.}}"
    assert main(["doctor", "--template", str(file), "--switch", words]) == 0
    shown = capsys.readouterr().out
    assert 'switch: {think: {system: "Think."}, no_think: {system: "Answer."}}' in shown
    assert "<|im_start|>system\u21b5\nThink.\u21b5\n\u21b5\nYou answer" in shown


def test_json_has_the_trials_with_text_and_what_is_supervised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--template", "dualign", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["trials"]
    assert said["switch"] == {
        "think": {"enable_thinking": True},
        "no_think": {"enable_thinking": False},
    }
    assert said["modes_differ"] is True and len(said["rows"]) == 20
    (row,) = [entry for entry in said["rows"] if entry["kind"] == KINDS[0] and entry["mode"] == "no_think"]  # fmt: skip
    assert row["supervised"] == "Four.<|im_end|>" and row["text"].startswith("<|im_start|>system")


def test_a_template_that_cannot_be_trained_is_an_error_and_nothing_to_try_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.jinja"
    file.write_text("{% if %}", encoding="utf-8")
    assert main(["doctor", "--template", str(file)]) == 1
    assert "template_unusable" in capsys.readouterr().out
    assert main(["doctor"]) == 2
    assert "expected a recipe, a model folder, data, or a template" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("gemma4", 0), ("deepseekv3", 1)])
def test_what_is_trained_is_no_error(
    name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma 4 writes traces in turns that call, so those train; DeepSeek-V3 writes them nowhere."""
    (file,) = (file for file in FOREIGN if file.stem == name)
    tokenizer = tokenizer_for(file.read_text(encoding="utf-8"))
    tokenizer.save_pretrained(tmp_path)
    command = ["doctor", "--template", str(file), "--tokenizer", str(tmp_path)]
    assert main(command) == code
    assert ("thinking_lost" in capsys.readouterr().out) == bool(code)


def test_a_tokenizer_alone_tries_its_own_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tokenizer_for(families.GRANITE)
    tokenizer.chat_template = families.GRANITE
    tokenizer.save_pretrained(tmp_path)
    assert main(["doctor", "--tokenizer", str(tmp_path)]) == 0
    assert "template tokenizer, switch: {think: {thinking: true}" in capsys.readouterr().out


if __name__ == "__main__":
    print("# " + ", ".join(KINDS))
    print("# " + ", ".join(f"{letter} {code or 'trained'}" for code, letter in LETTERS.items()))
    for file in FOREIGN:
        print(*lines_of(file), sep="\n")
