"""What shows only between a template and a tokenizer, or in tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.text.template import load_template
from dualign.data.tokens.labels import Example
from dualign.doctor.findings import Findings
from dualign.doctor.survey import SurveyInput, survey
from dualign.doctor.tokens import check_example, check_tokenizer, unknown_id
from tests.doctor.conftest import Examine, write
from tests.doctor.defective_rows import no_think_row, think_row
from tests.doctor.defective_templates import shipped


def with_first_token(shrunk: Path, token: str) -> PreTrainedTokenizerBase:
    """The embedded default's tokenizer, made to put a token before every text as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(shrunk)
    place = tokenizer.convert_tokens_to_ids(token)
    before = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, place)])
    tokenizer.backend_tokenizer.post_processor = before
    return tokenizer


def codes(tokenizer: PreTrainedTokenizerBase, template: str) -> set[str]:
    made = load_template(template, tokenizer=tokenizer)
    return {fault.code for fault in check_tokenizer(tokenizer, made)}


def test_a_first_token_from_template_and_tokenizer_is_told_from_one_that_is_missing(
    shrunk: Path, tmp_path: Path
) -> None:
    tokenizer = with_first_token(shrunk, "<|endoftext|>")
    (tmp_path / "printing.jinja").write_text("{{- '<|endoftext|>' }}" + shipped("chatml"))
    assert "bos_missing" in codes(tokenizer, "chatml")
    assert "bos_doubled" in codes(tokenizer, str(tmp_path / "printing.jinja"))
    plain = AutoTokenizer.from_pretrained(shrunk)
    assert not codes(plain, "chatml") & {"bos_missing", "bos_doubled"}


def test_unknown_tokens_are_seen_where_the_tokenizer_has_one_for_them() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "yes": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<end>", pad_token="<unk>"
    )
    assert unknown_id(tokenizer) is None, "as padding it may stand anywhere"
    tokenizer.pad_token = "<end>"
    ids = tokenizer("yes Zoë no")["input_ids"]
    example = Example(input_ids=ids, spans=((0, len(ids)),), mode="no_think", source="made", row=0)
    (fault,) = check_example(example, unknown_id(tokenizer))
    assert (fault.code, fault.message) == (
        "unknown_tokens",
        "2 tokens aren't in the vocabulary",
    )


def test_a_prompt_that_the_saved_tokenizer_gives_otherwise_is_found(
    formats: Callable[[str], Any], tmp_path: Path
) -> None:
    _, template = formats("dualign")
    source = SourceConfig(path=str(write(tmp_path, "rows", [think_row(), no_think_row()])))
    findings = {}
    for saved in ("dualign", "smollm3-training"):
        other, _ = formats(saved)
        subject = SurveyInput(
            data=DataConfig(sources=(source,)), tokenizer=other, template=template
        )
        findings[saved] = Findings()
        survey(subject, findings[saved])
    assert findings["dualign"].all() == []
    found = [(finding.code, finding.row) for finding in findings["smollm3-training"].all()]
    assert found == [("served_prompt_differs", 0), ("served_prompt_differs", 1)]


def test_two_newlines_that_become_one_token_are_a_boundary(
    examine: Examine, tmp_path: Path
) -> None:
    """As Qwen3's template does under a tokenizer that joins newlines at the end of a prompt."""
    (tmp_path / "two.jinja").write_text(
        shipped("dualign").replace("<think>\\n\\n</think>\\n'", "<think>\\n\\n</think>\\n\\n'")
    )
    findings, account = examine(
        {"rows": [think_row(), no_think_row()]}, template=str(tmp_path / "two.jinja")
    )
    assert ("boundary", 1) in [(finding.code, finding.row) for finding in findings.all()]
    assert account["dropped"] == {"boundary": 1}
