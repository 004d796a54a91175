"""Write the SmolLM3 training template with the default system texts of a released checkpoint in it.

    python recipes/smollm3/fill_template.py HuggingFaceTB/SmolLM3-3B smollm3-filled.jinja
    dualign sft recipes/smollm3/sft.yaml template=smollm3-filled.jinja

The texts belong to the checkpoint, so they are read from its tokenizer. They go into the template
itself and not into `template_kwargs`, because the run directory publishes the template: training
and inference then see the same text.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

START, END = "## Custom Instructions\n\n", "\n\n<|im_start|>user\n"


def default_text(tokenizer: PreTrainedTokenizerBase, *, thinking: bool) -> str:
    """What the tokenizer's template writes when nobody gave instructions."""
    turns = [{"role": "user", "content": "x"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=thinking)
    if START not in text or END not in text:
        sys.exit(f"expected {START!r} ... {END!r} in a SmolLM3 template, found {text!r}")
    return str(text).split(START, 1)[1].rsplit(END, 1)[0]


def filled(template: str, texts: dict[str, str]) -> str:
    """The template with its variables set, before anything else in it."""
    lines = [
        f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}"
        for name, text in texts.items()
    ]
    return "\n".join([*lines, template])


def main(model: str, target: str) -> None:
    """Read the texts of `model`, write the filled template to `target`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = {
        "default_think_instructions": default_text(tokenizer, thinking=True),
        "default_no_think_instructions": default_text(tokenizer, thinking=False),
    }
    template = (
        files("dualign.data").joinpath("templates", "smollm3-training.jinja").read_text("utf-8")
    )
    Path(target).write_text(filled(template, texts), encoding="utf-8")
    print("\n".join(f"{name}: {text}" for name, text in texts.items()))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} MODEL TARGET.jinja")
    main(*sys.argv[1:])
