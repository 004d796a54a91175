"""Saved directories with one fault each, made from a clean one, and the code that must be found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Planted(NamedTuple):
    make: Callable[[Path], None]
    code: str
    adapter: bool = False


def edit(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | keys
    kept = {name: item for name, item in value.items() if item is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def pad_made_the_end_of_turn(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token="<|im_end|>")


def no_pad_token(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)


def eos_of_the_base(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")


def config_ends_elsewhere(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=0)


def generation_ends_elsewhere(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[0])


def generation_config_lost(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def pads_that_differ(folder: Path) -> None:
    edit(folder / "config.json", pad_token_id=7)


def template_lost(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def template_changed_after_training(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("You can call", "You may call"), encoding="utf-8")


def another_template_in_the_settings(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template="{{ messages }}")


def template_that_closes_turns_with_words(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>", "[END]"), encoding="utf-8")


def calls_with_an_end_of_their_own(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    end = "{{- '<|endoftext|>' if message.tool_calls else '<|im_end|>' }}"
    text = file.read_text()
    assert "{{- '<|im_end|>' }}" in text
    file.write_text(text.replace("{{- '<|im_end|>' }}", end), encoding="utf-8")


def token_added_after_training(folder: Path) -> None:
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    last = len(value["model"]["vocab"])
    value["added_tokens"].append(value["added_tokens"][-1] | {"id": last, "content": "<|new|>"})
    file.write_text(json.dumps(value), encoding="utf-8")


def vocabulary_size_wrong(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=60_000)


def weights_lost(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def weights_cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def config_cut_off(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text()[:40], encoding="utf-8")


def tokenizer_lost(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def rows_lost(folder: Path) -> None:
    edit(folder / "run.json", rows={"in": 10, "kept": 7, "dropped": {"too_long": 2}, "by": []})


def never_loaded_again(folder: Path) -> None:
    edit(folder / "run.json", checks={"saved": "weights"})


def base_without_a_name(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="")


def base_moved_away(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="/models/gone")


def base_on_this_machine(folder: Path) -> None:
    (folder / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "base" / name).write_bytes((folder.parent / "model" / name).read_bytes())
    edit(folder / "adapter_config.json", base_model_name_or_path=str(folder / "base"))


def adapter_lost(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def adapter_with_a_new_token(folder: Path) -> None:
    base_on_this_machine(folder)
    token_added_after_training(folder)


def adapter_on_a_tied_head(folder: Path) -> None:
    base_on_this_machine(folder)
    edit(folder / "adapter_config.json", target_modules=["q_proj", "lm_head"])


def adapter_with_whole_modules(folder: Path) -> None:
    edit(folder / "adapter_config.json", modules_to_save=["score"])


def adapter_with_rows_of_tokens(folder: Path) -> None:
    edit(folder / "adapter_config.json", trainable_token_indices=[3])


PLANTED = (
    Planted(pad_made_the_end_of_turn, "pad_is_end_of_turn"),
    Planted(no_pad_token, "no_pad"),
    Planted(eos_of_the_base, "eos_not_end_of_turn"),
    Planted(config_ends_elsewhere, "eos_disagrees"),
    Planted(generation_ends_elsewhere, "generation_never_stops"),
    Planted(generation_config_lost, "no_generation_config"),
    Planted(pads_that_differ, "pad_disagrees"),
    Planted(template_lost, "no_template"),
    Planted(template_changed_after_training, "template_not_trained"),
    Planted(another_template_in_the_settings, "two_templates"),
    Planted(template_that_closes_turns_with_words, "no_end_of_turn"),
    Planted(calls_with_an_end_of_their_own, "generation_never_stops"),
    Planted(token_added_after_training, "tokens_without_embedding"),
    Planted(vocabulary_size_wrong, "embedding_size"),
    Planted(weights_lost, "weights_unreadable"),
    Planted(weights_cut_off, "weights_unreadable"),
    Planted(config_cut_off, "config_unreadable"),
    Planted(tokenizer_lost, "tokenizer_unreadable"),
    Planted(rows_lost, "rows_unaccounted"),
    Planted(never_loaded_again, "never_reloaded"),
    Planted(base_without_a_name, "base_not_named", adapter=True),
    Planted(base_moved_away, "base_not_found", adapter=True),
    Planted(base_on_this_machine, "base_is_local", adapter=True),
    Planted(adapter_on_a_tied_head, "adapter_splits_tie", adapter=True),
    Planted(adapter_with_rows_of_tokens, "adapter_trains_tokens", adapter=True),
    Planted(adapter_with_whole_modules, "adapter_saves_modules", adapter=True),
    Planted(adapter_lost, "weights_unreadable", adapter=True),
    Planted(adapter_with_a_new_token, "tokens_without_embedding", adapter=True),
)
