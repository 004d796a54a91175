"""LLaMA-Factory's data sets: dataset_info.json, columns and tags, and what is done with the rows.

    "mine": {"file_name": "mine.json", "formatting": "sharegpt",        {path: data/mine.json,
             "columns": {"messages": "chat"}, "tags": {...}}       ->    columns: {messages: chat, role: ...}}

The entries of the sets that a file names become keys of the file, `dataset_info[0].columns.prompt`,
so that each of them is in one of the lists.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.config import Key
from dualign.errors import ConfigError
from dualign.importing.draft import Draft
from dualign.importing.llama_factory_columns import columns_of
from dualign.importing.llama_factory_templates import fill_template

_FILE = "dataset_info.json"
_ROWS = (
    "a row whose turns are out of order is skipped there with a warning; here a row that contradicts itself stops "
    "a run (data.conflicts: drop counts it); LLaMA-Factory also learns what most templates write after the token "
    "that ends a turn (ChatML's line end), and here that token is the last"
)
_ELSEWHERE = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


def fill_data(draft: Draft) -> None:
    """Write sources, template, lengths, packing and masks."""
    names = {key: words(draft.get(key)) for key in ("dataset", "eval_dataset")}
    if not names["dataset"]:
        draft.problems.append("dataset: isn't there; a recipe needs the data to train on")
        return
    entries = _entries(draft, [*names["dataset"], *names["eval_dataset"]])
    if draft.problems:
        return
    numbers = {name: number for number, name in enumerate(entries)}
    draft.document.value["dataset_info"] = [entry for entry, _ in entries.values()]
    sources: list[dict[str, Any]] = []
    for key, listed in names.items():
        for name in listed:
            place = ("dataset_info", numbers[name])
            source = _source(draft, name, place, *entries[name])
            if source is None:
                continue
            draft.note_source(place, len(sources), source, unchanged="is read as it is")
            sources.append(source | ({"validation": True} if key == "eval_dataset" else {}))
        if listed:
            draft.carry(key, "data.sources", says=f"by {_FILE}: {', '.join(listed)}")
    if not any(not source.get("validation") for source in sources):
        draft.problems.append(
            "dataset: none of its sets can be read; docs/import.md says which can"
        )
        return
    draft.put("data.sources", sources)
    draft.change("(rows)", says=_ROWS)
    _fill_mixture(draft)
    _fill_amounts(draft)
    _fill_packing(draft)
    fill_template(draft)


def words(value: Any) -> list[str]:
    """`"a, b"` -> ["a", "b"], as LLaMA-Factory splits its lists; a list as it is."""
    parts = value if isinstance(value, list) else str(value).split(",") if value else []
    return [str(part).strip() for part in parts if str(part).strip()]


def _entries(draft: Draft, names: list[str]) -> dict[str, tuple[Mapping[str, Any], Path]]:
    """Return the entry of each set that is named, and the folder of its files."""
    folder = draft.get("dataset_dir")
    if folder == "ONLINE":
        draft.carry("dataset_dir", says="the names are those of sets of the Hub")
        return {name: ({"hf_hub_url": name}, draft.folder) for name in names}
    if isinstance(folder, Mapping):
        info, place = folder, draft.folder
    elif str(folder).startswith("REMOTE:"):
        says = f"download {_FILE} of that repository, and set dataset_dir to its folder"
        draft.problems.append(f"dataset_dir: {folder}: isn't read from the Hub: {says}")
        return {}
    else:
        file = _info_file(draft, str(folder or "data"))
        if file is None:
            draft.problems.append(
                f"dataset_dir: no {_FILE} in {folder or 'data'}, beside the file, or in a folder above it; "
                "put it beside the file, or set dataset_dir"
            )
            return {}
        info, place = _read_info(file), file.parent
    if folder is not None:
        draft.carry("dataset_dir", says=f"its {_FILE} says what the sets are")
    unknown = [name for name in names if not isinstance(info.get(name), Mapping)]
    if unknown:
        draft.problems.append(f"dataset: {', '.join(unknown)}: isn't in {place / _FILE}")
        return {}
    return {name: (info[name], place) for name in names}


def _info_file(draft: Draft, folder: str) -> Path | None:
    """Return dataset_info.json: of the folder, from the file's place, those above it, or the working one."""
    here = draft.folder.resolve()
    places = [above / folder for above in (here, *here.parents)]
    files = [place / _FILE for place in (*places, Path(folder), here)]
    return next((file for file in files if file.is_file()), None)


def _read_info(file: Path) -> Mapping[str, Any]:
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: isn't JSON: {error}") from None
    if not isinstance(info, Mapping):
        raise ConfigError(f"{file}: expected an object with the name of each set")
    return info


def _source(
    draft: Draft, name: str, place: Key, entry: Mapping[str, Any], folder: Path
) -> dict[str, Any] | None:
    """Return a source of the recipe; None, with notes, if the set is of no place that is read."""
    path, file = _path(draft, entry, folder)
    if path is None:
        return None
    source: dict[str, Any] = {"path": path}
    if file is None and "hf_hub_url" not in entry:
        draft.refuse((*place, "file_name"), f"{path}: no such file; put it there before a run")
    if file is not None and file.suffix == ".txt":
        says = "the file is one document; in LLaMA-Factory each of its lines is one"
        draft.change((*place, "file_name"), "data.sources", says=says)
    if entry.get("subset"):
        source["name"] = entry["subset"]
    if entry.get("split", "train") != "train":
        source["split"] = entry["split"]
    counts = (draft.number(*place, "num_samples"), draft.number("max_samples"))
    if limits := [count for count in counts if count is not None]:
        source["rows"] = min(limits)
    if needs := _needs_other_stage(draft, entry):
        draft.problems.append(f"dataset: {name}: {needs}")
    if columns := columns_of(draft, entry, place, file):
        source["columns"] = columns
    return source


def _path(draft: Draft, entry: Mapping[str, Any], folder: Path) -> tuple[str | None, Path | None]:
    """Return a source's path as the recipe has it, and the file if it is here."""
    if entry.get("hf_hub_url"):
        return str(entry["hf_hub_url"]), None
    if any(entry.get(key) for key in _ELSEWHERE) or not entry.get("file_name"):
        return None, None  # the rows of these keys say what to do
    file = folder / str(entry["file_name"])
    if file.is_absolute() and Path(str(entry["file_name"])).is_absolute():
        return str(file), file if file.exists() else None
    return os.path.relpath(file, draft.out), file if file.exists() else None


def _needs_other_stage(draft: Draft, entry: Mapping[str, Any]) -> str:
    pairs = draft.get("stage") == "dpo"
    if bool(entry.get("ranking")) == pairs:
        return ""
    if pairs:
        return "has no ranking: true, and stage: dpo takes pairs of a chosen and a rejected answer"
    return "has ranking: true, and only stage: dpo takes pairs of a chosen and a rejected answer"


def _fill_mixture(draft: Draft) -> None:
    """Give sources their shares where sets are interleaved."""
    strategy = draft.get("mix_strategy") or "concat"
    trained = [source for source in draft.stage["data"]["sources"] if not source.get("validation")]
    if strategy == "concat" or len(trained) == 1:
        return
    try:
        numbers = [float(part) for part in words(draft.get("interleave_probs"))]
    except ValueError as error:
        draft.problems.append(f"interleave_probs: {error}: expected numbers")
        return
    numbers = numbers or [1.0] * len(trained)
    if len(numbers) != len(trained):
        draft.problems.append(
            f"interleave_probs: {len(numbers)} for {len(trained)} sets: expected one for each"
        )
        return
    for source, number in zip(trained, numbers, strict=True):
        source["share"] = round(number / sum(numbers), 6)
    trained[-1].pop("share")  # the rest: rounded shares needn't add up to 1
    draft.change("mix_strategy", "data.sources", says="")
    if draft.get("interleave_probs"):
        draft.change("interleave_probs", "data.sources")


def _fill_amounts(draft: Draft) -> None:
    """Write what is held out, how rows are read, and how many processes read them."""
    wrapped = draft.get("stage") == "pt" and draft.get("packing") is not False
    says = "documents are joined and cut at this length, as there" if wrapped else ""
    draft.change("cutoff_len", "data.max_tokens", draft.get("cutoff_len") or 2048, says)
    size = draft.number("val_size") or 0
    if size:
        draft.carry("val_size", "data.validation_rows", int(size) if size > 1 else size)
    if draft.get("max_samples") is not None:
        draft.change("max_samples", "data.sources")
    if text := draft.get("default_system"):
        _fill_system(draft, str(text))
    if draft.get("streaming") is True:
        buffer = draft.get("buffer_size") or 16384
        draft.change("streaming", "data.streaming", {"shuffle_buffer": buffer})
        if draft.get("buffer_size"):
            draft.carry("buffer_size", "data.streaming.shuffle_buffer", buffer)
    elif draft.get("buffer_size") is not None:
        draft.carry("buffer_size", says="has no effect without streaming")
    if draft.get("overwrite_cache") is True:
        draft.change("overwrite_cache")


def _fill_system(draft: Draft, text: str) -> None:
    """Write the system text of rows that have none; a column of system texts stays the only one."""
    own = []
    for number, source in enumerate(draft.stage["data"]["sources"]):
        columns = source.setdefault("columns", {})
        if "system" in columns and columns["system"] != {"value": ""}:
            own.append(f"data.sources[{number}]")
        else:
            columns["system"] = {"value": text}
    if own:
        says = f"a row of {', '.join(own)} whose column of system texts is empty gets none"
        draft.change("default_system", "data.sources", says=says)
    else:
        draft.carry("default_system", "data.sources", says="a row's own system message stays")


def _fill_packing(draft: Draft) -> None:
    """Write how rows are packed: by default each alone, of raw text wrapped."""
    packing, raw = draft.get("packing"), draft.get("stage") == "pt"
    if draft.kind == "preference":
        draft.put("data.packing", "none")
        return
    if raw:
        draft.put("data.supervise", "all")
        wrapped = packing is not False
        says = (
            "wrapped: documents are joined and cut every max_tokens, but never see each other; each ends with the "
            "separator of documents, there with the eos token, which ends a turn of chat models"
            if wrapped
            else "none: LLaMA-Factory cuts off the end of a longer document; here a row is left out, and a file of "
            "text becomes several rows"
        )
        draft.change("packing", "data.packing", "wrapped" if wrapped else "none", says)
    elif draft.get("neat_packing") is True:
        draft.carry("neat_packing", "data.packing", "best_fit")
        if packing is not None:
            draft.carry("packing", says="neat_packing says it")
    elif packing is True:
        draft.change("packing", "data.packing", "best_fit")
    elif packing is None:
        draft.assume("packing", "data.packing", "none")
    else:
        draft.carry("packing", "data.packing", "none")
