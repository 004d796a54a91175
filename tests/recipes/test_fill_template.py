"""The script that puts a checkpoint's own system texts into the training template."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

import dualign

SCRIPT = Path(__file__).parents[2] / "recipes" / "smollm3" / "fill_template.py"
TEMPLATES = Path(dualign.__file__).parent / "data" / "templates"
THINK_TEXT = (
    'Say "why" first.\n\nUse two sections: <think> Thought </think> 100 % \u00e9 \\n {% if %}.'
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_template", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_filled_template_writes_the_texts_of_the_checkpoint(
    script: ModuleType, tiny_smollm3: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_smollm3)
    released = (TEMPLATES / "smollm3.jinja").read_text()
    texts = {"default_think_instructions": THINK_TEXT, "default_no_think_instructions": "Be brief."}
    tokenizer.chat_template = script.filled(released, texts)
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    script.main(str(tmp_path / "checkpoint"), str(tmp_path / "filled.jinja"))
    filled = (tmp_path / "filled.jinja").read_text()
    for thinking, expected in ((True, THINK_TEXT), (False, "Be brief.")):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}],
            tokenize=False,
            chat_template=filled,
            enable_thinking=thinking,
        )
        assert f"## Custom Instructions\n\n{expected}\n\n## Tools\n\n" in rendered


def test_checkpoint_without_the_format_is_refused(script: ModuleType, tiny_smollm3: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_smollm3)
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text()
    with pytest.raises(SystemExit, match="SmolLM3 template"):
        script.default_text(tokenizer, thinking=True)
