"""The manifest: files of a run directory that are published, and why the others stay."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dualign.checkpoints.checkpoint import require_inside
from dualign.checkpoints.shards import MORE_TEMPLATES, more_templates
from dualign.errors import CheckpointError, PublishError
from dualign.publish.lineage import Lineage

Contents = Literal["adapter", "weights", "both"]
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json", "merge.json")
_REASONS = (
    (r"README\.md", "the card is made anew"),
    (r"log\.jsonl", "the training log"),
    (r"(optimizer|scheduler|rng_state|trainer_state|training_args|checkpoint-\d+|checkpoints)(\..*)?", "training state"),
    (r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|npy|npz)", "may be a pickle, which runs code when it is read"),
    (r"\.env.*|\.netrc|.*\.(pem|key|p12)|id_(rsa|ed25519).*|.*credentials.*|.*secret.*|.*token", "may hold secrets"),
    (r"\.cache|__pycache__|.*\.lock|\..*", "a cache or hidden file"),
    (r"(samples|generations|pairs|train|.*)\.(jsonl|csv|parquet|arrow)", "rows of data"),
    (r".*\.py", "code: a model has to load without it"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The files of a publication. `files`: name in the repository -> file of the run directory."""

    contents: Contents
    files: dict[str, Path]
    fold: bool
    """the weights are made by folding the adapter into its base"""
    left_out: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]


def is_published(name: str) -> bool:
    """True for files that a publication writes, and for weights that would be loaded."""
    written = {
        *TOKENIZER_FILES,
        *_ADAPTER,
        *SETTINGS,
        *(f"adapter/{file}" for file in _ADAPTER),
        "metrics.json",
    }
    figure = name.startswith("figures/") and name.endswith(".png")
    pickle = re.fullmatch(r"(pytorch_model|adapter_model).*\.bin(\.index\.json)?", name)
    template = re.fullmatch(rf"{MORE_TEMPLATES}/[\w-]+\.jinja", name)
    return name in written or figure or bool(pickle or template or WEIGHTS.fullmatch(name))


def is_document(name: str) -> bool:
    """True for files that tell of the weights: the card, records and figures."""
    records = ("README.md", "run.json", "metrics.json")
    return (
        name in records
        or Path(name).name == "export.json"
        or (name.startswith("figures/") and name.endswith(".png"))
    )


def make_manifest(lineage: Lineage, contents: Contents | None) -> Manifest:
    """List the files that go. Without `contents`: all that the run directory holds.

    Raises:
        PublishError: an adapter is requested and there is none.
    """
    run, adapter = lineage.run.path, lineage.adapter_folder
    if contents is None:
        contents = "adapter" if lineage.is_adapter else "both" if adapter else "weights"
    if contents != "weights" and adapter is None:
        raise PublishError(
            f"{run}: holds weights and no adapter, so --what {contents} can't be met; use --what weights, "
            "or name the stage that trained the adapter"
        )
    fold = contents != "adapter" and lineage.is_adapter
    names = [*TOKENIZER_FILES, *more_templates(run)]
    if contents != "adapter" and not fold:
        names += ["config.json", "merge.json"]
        names += [file.name for file in sorted(run.iterdir()) if WEIGHTS.fullmatch(file.name)]
    files = {name: run / name for name in names if _exists(run / name)}
    if adapter and contents != "weights":
        prefix = "adapter/" if contents == "both" else ""
        files |= {prefix + name: adapter / name for name in _ADAPTER if _exists(adapter / name)}
    return Manifest(
        contents=contents,
        files=files,
        fold=fold,
        left_out=tuple(_left_out(run, files)),
        faults=tuple(_faults(run, files, contents, fold=fold)),
    )


def _exists(file: Path) -> bool:
    return file.is_file() or file.is_symlink()


def _left_out(run: Path, files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    going = set(files.values())
    for file in sorted(run.iterdir()):
        if (
            file.name == MORE_TEMPLATES
            or file in going
            or file.name in ("run.json", "adapter", "merge.json", "config.json")
        ):
            continue
        if file.name in _ADAPTER or WEIGHTS.fullmatch(file.name):
            yield file.name, "not asked for"
        else:
            reasons = (reason for pattern, reason in _REASONS if re.fullmatch(pattern, file.name))
            yield file.name, next(reasons, "not part of a checkpoint")


def _faults(run: Path, files: dict[str, Path], contents: Contents, *, fold: bool) -> Iterator[str]:
    required = list(_ADAPTER) if contents == "adapter" else []
    if contents == "both":
        required += [f"adapter/{name}" for name in _ADAPTER]
    if contents != "adapter" and not fold:
        required.append("config.json")
        if not any(WEIGHTS.fullmatch(name) for name in files):
            yield _no_weights(run)
    for name in required:
        if name not in files:
            yield f"{name} is missing{_pickled(run, name)}"
    for name in ("tokenizer_config.json", "tokenizer.json"):
        if name not in files and not ("tokenizer.model" in files and name == "tokenizer.json"):
            yield f"{name} is missing: nobody can write a prompt without the tokenizer"
    for name, file in files.items():
        try:
            require_inside(file, run)
        except CheckpointError as error:
            yield f"{name}: {error}"


def _no_weights(run: Path) -> str:
    pickles = sorted(file.name for file in run.glob("*.bin"))
    if pickles:
        return f"the weights are a pickle ({pickles[0]}), which runs code when it is read: save them as safetensors"
    return "model.safetensors is missing"


def _pickled(run: Path, name: str) -> str:
    pickle = run / name.replace(".safetensors", ".bin")
    if name.endswith(".safetensors") and pickle.is_file():
        return f", and {pickle.name} is a pickle, which runs code when it is read: save it as safetensors"
    return ""
