"""The text of a template by its name, and what a tokenizer knows of it."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.data.text.installed import PREFIX, installed_text
from dualign.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_text(name_or_path: str, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """Return the text of a template: one that ships, the tokenizer's, `trl:NAME` or a .jinja file.

    Raises:
        TemplateError: there is no such template.
    """
    if name_or_path == "tokenizer":
        if tokenizer is None or not tokenizer.chat_template:
            raise TemplateError(
                "template 'tokenizer': the tokenizer has no chat template. Name one: dualign."
            )
        named = named_templates(tokenizer)
        if "default" not in named:
            raise TemplateError(
                f"template 'tokenizer': the tokenizer has the templates {', '.join(sorted(named))} and "
                "none named default, so which one to take can't be told. Name a .jinja file."
            )
        return named["default"]
    if name_or_path.startswith(PREFIX):
        return installed_text(name_or_path)
    if name_or_path.endswith(".jinja"):
        path = Path(name_or_path)
        if not path.is_file():
            raise TemplateError(
                f"template {name_or_path!r}: no such file (looked at {path.absolute()})"
            )
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"template {name_or_path!r}: isn't UTF-8: {error}") from None
    folder = files("dualign.data") / "templates"
    names = sorted(
        file.name.removesuffix(".jinja")
        for file in folder.iterdir()
        if file.name.endswith(".jinja")
    )
    if name_or_path not in names:
        near = get_close_matches(name_or_path, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TemplateError(
            f"unknown template {name_or_path!r}{hint}. "
            f"Expected {', '.join(names)}, tokenizer, {PREFIX}NAME of the installed trl, or a .jinja file."
        )
    return (folder / f"{name_or_path}.jinja").read_text(encoding="utf-8")


def tool_use_text(name_or_path: str, tokenizer: "PreTrainedTokenizerBase | None") -> str | None:
    """Return the template that transformers takes for rows with tools, if it is another one."""
    if name_or_path != "tokenizer" or tokenizer is None:
        return None
    return named_templates(tokenizer).get("tool_use")


def named_templates(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return a tokenizer's templates by name; a single one is `default`."""
    templates = tokenizer.chat_template or {}
    return {"default": templates} if isinstance(templates, str) else dict(templates)


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, bool]:
    """Return the added tokens, and whether each is special."""
    tokens = {str(token): True for token in tokenizer.all_special_tokens}
    return tokens | {
        token.content: token.special for token in tokenizer.added_tokens_decoder.values()
    }
