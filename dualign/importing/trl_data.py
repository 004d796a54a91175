"""The data sets of TRL's scripts and of alignment-handbook as sources; lengths, packing and masks.

dataset_name: owner/name                     of TRL's scripts, with dataset_config and splits
datasets: [{path, name, split, fraction}]    of TRL's scripts
dataset_mixture: {datasets: [{id, weight}]}  of alignment-handbook
dataset_mixer: {owner/name: 0.5}             of alignment-handbook before that, with dataset_splits
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dualign.config import Key
from dualign.importing.draft import Draft
from dualign.importing.local_rows import first_rows

_BUILDERS = ("json", "csv", "parquet", "arrow", "text")
"""Names that `load_dataset` takes for files."""
_ALL_TOKENS = (
    "isn't there: TRL then learns every token of conversations (messages), and of a prompt and completion the "
    "completion; here the assistant's turns alone, in both, those of a prompt too (supervise: last learns the "
    "completion; all learns every token, without checks of traces)"
)
_COMPLETION = (
    "last: the last turn alone, which the completion is; assistant turns of its prompt aren't learned (of rows of "
    "messages TRL takes no notice of the key: there set assistant, or all)"
)
_EVERYTHING = (
    "all: every token is learned, and traces aren't checked; of a prompt and completion TRL learns the completion "
    "alone, so such rows need supervise: last"
)
_ROWS = (
    "the mode is each row's own: its chat_template_kwargs, /think or /no_think, or its trace; a row that contradicts "
    "itself stops a run (data.conflicts: drop counts it), and so do rows with and without a trace under a template "
    "that asks for both in one way; rows of text alone (prompt and completion that aren't messages) get no chat "
    "template there, and are turns of the template here; of completions and of pairs TRL also learns what the template "
    "writes after the token that ends a turn (ChatML's line end), and here that token is the last"
)

_TEXT_OF_SOME = (
    "text: all of it is learned, without a template; TRL reads it of rows without turns alone: where a source's rows "
    "have messages, or a prompt and a completion, take its columns out of the recipe"
)


def fill_data(draft: Draft) -> None:
    """Write sources, lengths, packing and masks."""
    forms = {
        "datasets": _of_datasets,
        "dataset_mixture": _of_mixture,
        "dataset_mixer": _of_mixer,
        "dataset_name": _of_name,
    }
    key = next((key for key in forms if draft.get(key)), None)
    if key is None:
        draft.problems.append(
            f"{', '.join(forms)}: none is there; a recipe needs the data to train on"
        )
        return
    for other in ("dataset_name", "dataset_config", "dataset_train_split"):
        if key != "dataset_name" and draft.get(other):
            draft.carry(other, says=f"has no effect beside {key}")
    sources = forms[key](draft)
    if not any(not source.get("validation") for source in sources):
        draft.problems.append(f"{key}: none of its sets can be read; docs/import.md says which can")
        return
    draft.put("data.sources", sources)
    _fill_text(draft, sources)
    if draft.kind == "sft":
        _fill_packing(draft)
        _fill_mask(draft)
    else:
        draft.put("data.packing", "none")
        draft.change("(rows)", says=_ROWS)
    _fill_length(draft)
    if draft.get("dataset_streaming") is True or draft.get("streaming") is True:
        draft.change(
            "dataset_streaming" if draft.get("dataset_streaming") else "streaming",
            "data.streaming",
            True,
        )


def _fill_length(draft: Draft) -> None:
    if draft.get("max_length") is not None or draft.get("max_seq_length") is not None:
        return
    if "max_length" in draft.document.value:
        draft.put("data.max_tokens", 1024)
        says = "is empty: TRL cuts nothing then; here rows over 1024 tokens are left out until data.max_tokens is raised"
        draft.refuse("max_length", says)
    else:
        draft.change("max_length", "data.max_tokens", 1024)


def _source(draft: Draft, path: Any, name: Any = None, split: Any = None) -> dict[str, Any]:
    source = {"path": draft.path(str(path)) or str(path)}
    if name and name != "default":
        source["name"] = str(name)
    if split and split != "train":
        source["split"] = str(split)
    return source


def _validates(draft: Draft) -> bool:
    values = [draft.get(key) for key in ("eval_strategy", "evaluation_strategy")]
    return any(value not in (None, False, "no") for value in values)


def _of_name(draft: Draft) -> list[dict[str, Any]]:
    name, config = draft.get("dataset_name"), draft.get("dataset_config")
    train = draft.get("dataset_train_split") or "train"
    test = draft.get("dataset_test_split") or "test"
    sources = [_source(draft, name, config, train)]
    draft.carry("dataset_name", "data.sources")
    for key in ("dataset_config", "dataset_train_split"):
        if draft.get(key):
            draft.carry(key, "data.sources")
    if _validates(draft):
        sources.append(_source(draft, name, config, test) | {"validation": True})
        says = "its rows are validated on (validation: true)"
        if draft.get("dataset_test_split"):
            draft.carry("dataset_test_split", "data.sources", says=says)
        else:
            draft.assume(
                "dataset_test_split", "data.sources", sources, f"isn't there: test; {says}"
            )
    elif draft.get("dataset_test_split"):
        draft.carry("dataset_test_split", says="has no effect without eval_strategy")
    return sources


def _of_mixer(draft: Draft) -> list[dict[str, Any]]:
    """Return the sources of `dataset_mixer: {owner/name: fraction}`, each with all splits that are named."""
    mixer, configs = draft.get("dataset_mixer"), _listed(draft.get("dataset_configs"))
    splits = _listed(draft.get("dataset_splits")) or ["train", "test"]
    if not isinstance(mixer, Mapping):
        draft.problems.append("dataset_mixer: expected sets with their parts")
        return []
    sources, validates = [], _validates(draft)
    for number, (path, part) in enumerate(mixer.items()):
        config = configs[number] if number < len(configs) else None
        for split in splits:
            source = _source(draft, path, config, split)
            if "train" in str(split):
                sources.append(source | ({"weight": part} if part != 1 else {}))
            elif validates:
                sources.append(source | {"validation": True})
    draft.carry("dataset_mixer", "data.sources", says="weights below 1 are drawn by the seed")
    if draft.get("dataset_splits"):
        held = "test splits are validated on" if validates else "test splits need eval_strategy"
        draft.carry("dataset_splits", "data.sources", says=held)
    if configs:
        draft.carry("dataset_configs", "data.sources")
    return sources


def _of_mixture(draft: Draft) -> list[dict[str, Any]]:
    entries = draft.get("dataset_mixture", "datasets")
    if not _are_mappings(entries):
        draft.problems.append("dataset_mixture: expected datasets: [{id: owner/name}]")
        return []
    sources = []
    for number, entry in enumerate(entries):
        source = _source(draft, entry.get("id"), entry.get("config"), entry.get("split"))
        if (weight := entry.get("weight")) is not None and weight != 1:
            source["weight"] = weight
        sources.append(source)
        draft.note_source(
            ("dataset_mixture", "datasets", number), number, source, unchanged="as here"
        )
    _fill_held_out(draft, ("dataset_mixture", "test_split_size"))
    if draft.get("dataset_mixture", "seed") is not None:
        draft.change(("dataset_mixture", "seed"))
    return sources


def _of_datasets(draft: Draft) -> list[dict[str, Any]]:
    entries = draft.get("datasets")
    if not _are_mappings(entries):
        draft.problems.append(
            "datasets: expected a list of sets, each with its path: [{path: owner/name}]"
        )
        return []
    fractions = [draft.number("datasets", place, "fraction") for place in range(len(entries))]
    total = sum(part for part in fractions if part is not None)
    sources: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        files = _files(draft, entry, number)
        for file in files:
            source = _source(draft, file, entry.get("name"), entry.get("split"))
            if file != entry.get("path") and draft.find(file) is None:
                says = f"{file}: isn't there (looked in {draft.folder} and here); the recipe loads when it is"
                draft.refuse(("datasets", number, "data_files"), says)
            if file != entry.get("path"):
                source.pop("split", None)
            if (part := fractions[number]) and len(entries) > 1:
                source["share"] = round(part / total / len(files), 6)
            sources.append(source)
        draft.note_source(
            ("datasets", number),
            len(sources) - 1,
            sources[-1] if sources else {},
            unchanged="as here",
        )
    if sources:
        sources[-1].pop("share", None)  # the rest: rounded shares needn't add up to 1
    _fill_held_out(draft, ("test_split_size",))
    return sources


def _listed(value: Any) -> list[Any]:
    """Return a list as it is, one value as a list, and nothing as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _are_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)


def _files(draft: Draft, entry: Mapping[str, Any], number: int) -> Sequence[str]:
    """Return the paths of a set: itself, or the files that `data_files` names for a builder such as json."""
    files = entry.get("data_files")
    if not files:
        return [str(entry.get("path"))]
    if entry.get("path") not in _BUILDERS:
        says = "chosen files of a hub set aren't read: download them, and name them in path"
        draft.refuse(("datasets", number, "data_files"), says)
        return [str(entry.get("path"))]
    if isinstance(files, Mapping):
        files = files.get(entry.get("split") or "train") or []
    return [files] if isinstance(files, str) else [str(file) for file in files]


def _fill_held_out(draft: Draft, place: Key) -> None:
    size = draft.number(*place)
    if size is not None:
        value = int(size) if size >= 1 else size
        draft.carry(place, "data.validation_rows", value)


def _fill_text(draft: Draft, sources: Sequence[dict[str, Any]]) -> None:
    """Write a column of raw text."""
    for key in ("dataset_text_field", "text_column"):
        name = draft.get(key)
        if name is None:
            continue
        if draft.kind != "sft" or name in ("messages", "conversations"):
            draft.carry(key, says="has no effect on conversations")
            continue
        rows = [first_rows(draft.out / source["path"]) for source in sources]
        turns = [bool(first) and _has_turns(first[0]) for first in rows]
        for source, has_turns in zip(sources, turns, strict=True):
            if not has_turns:
                source["columns"] = {"text": str(name)}
        if all(turns):
            draft.carry(
                key, says="has no effect on conversations, as there; it isn't in the recipe"
            )
        elif any(turns) or not all(rows):
            draft.change(key, "data.sources", says=_TEXT_OF_SOME)
        else:
            draft.change(key, "data.sources")


def _has_turns(row: Mapping[str, Any]) -> bool:
    """Return whether TRL reads turns of a row, and no column of text."""
    return any(name in row for name in ("messages", "conversations", "prompt"))


def _fill_packing(draft: Draft) -> None:
    strategy = draft.get("packing_strategy") or "bfd"
    if draft.get("packing") is not True:
        draft.put("data.packing", "none")
        if draft.get("packing") is None:
            draft.assume("packing", "data.packing", "none")
        else:
            draft.carry("packing", "data.packing", "none")
        if draft.get("packing_strategy"):
            draft.carry("packing_strategy", says="has no effect without packing")
        return
    ours = "wrapped" if strategy == "wrapped" else "best_fit"
    says = draft.table.rows["packing_strategy"].says
    if draft.get("packing_strategy"):
        draft.change("packing_strategy", "data.packing", ours)
        draft.carry("packing", "data.packing", ours)
    else:
        draft.change("packing", "data.packing", ours, says)


def _fill_mask(draft: Draft) -> None:
    """Write which tokens are learned: what the file says, else the assistant's turns."""
    if draft.has("data.sources[0].columns"):
        draft.put("data.supervise", "assistant")  # raw text is learned whole by its column
    of_turns, of_completion = draft.get("assistant_only_loss"), draft.get("completion_only_loss")
    draft.change("(rows)", says=_ROWS)
    if of_turns is None and of_completion is None:
        draft.change("assistant_only_loss", "data.supervise", "assistant", _ALL_TOKENS)
        return
    everything = not of_turns and of_completion is not True
    value = "all" if everything else "last" if of_completion else "assistant"
    for key in ("assistant_only_loss", "completion_only_loss"):
        if draft.get(key) is not None and everything:
            draft.change(
                key,
                "data.supervise",
                value,
                _EVERYTHING
                if of_completion is None
                else "all: every token is learned, and traces aren't checked",
            )
        elif key == "completion_only_loss" and of_completion:
            draft.change(key, "data.supervise", value, _COMPLETION)
        elif draft.get(key) is not None:
            draft.carry(key, "data.supervise", value)
