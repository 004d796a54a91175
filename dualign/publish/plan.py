"""Which files of a run directory are a checkpoint and go, and which stay here, and why."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dualign.checkpoints.checkpoint import require_inside
from dualign.errors import CheckpointError, PublishError
from dualign.publish.lineage import Lineage

What = Literal["adapter", "weights", "both"]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json", "merge.json")
_WHY = (
    (r"optimizer|scheduler|rng_state|trainer_state|training_args|checkpoint-\d+|checkpoints", "training state"),
    (r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|npy|npz)", "may be a pickle, which runs code when it is read"),
    (r"\.env.*|\.netrc|.*\.(pem|key|p12)|id_(rsa|ed25519).*|.*credentials.*|.*secret.*|.*token", "may hold secrets"),
    (r"\.cache|__pycache__|.*\.lock|\..*", "a cache or hidden file"),
    (r"(samples|generations|pairs|train|.*)\.(jsonl|csv|parquet|arrow)", "rows of data"),
    (r".*\.py", "code: a model has to load without it"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is published. `files`: name in the repository -> file of the run directory."""

    what: What
    files: dict[str, Path]
    fold: bool
    """the weights are made by folding the adapter into its base"""
    left_out: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]

    @property
    def adapter(self) -> str | None:
        """The folder of the adapter in the repository; "" is its top; None without one."""
        return {"adapter": "", "both": "adapter", "weights": None}[self.what]


def is_published(name: str) -> bool:
    """Whether a file of a repository is one that a publication writes, or weights that would be loaded."""
    own = {*_BESIDE, *ADAPTER, *SETTINGS, *(f"adapter/{one}" for one in ADAPTER), "metrics.json"}
    figure = name.startswith("figures/") and name.endswith(".png")
    pickle = re.fullmatch(r"(pytorch_model|adapter_model).*\.bin(\.index\.json)?", name)
    return name in own or figure or bool(pickle) or bool(_WEIGHTS.fullmatch(name))


def adapter_folder(lineage: Lineage) -> Path | None:
    """Where the run directory has an adapter: at its top, or in adapter/ beside folded weights."""
    for folder in (lineage.run.path, lineage.run.path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    return None


def make_plan(lineage: Lineage, what: What | None) -> Plan:
    """The files that go. Without `what`: all that the run directory holds, and nothing made from it.

    Raises:
        PublishError: an adapter is wanted and there is none.
    """
    run, adapter = lineage.run.path, adapter_folder(lineage)
    what = what or _default(lineage, adapter)
    if what != "weights" and adapter is None:
        raise PublishError(
            f"{run}: holds weights and no adapter, so --what {what} can't be met; use --what weights, "
            "or name the stage that trained the adapter"
        )
    fold = what != "adapter" and lineage.is_adapter
    names = [name for name in _BESIDE if _there(run / name)]
    if what != "adapter" and not fold:
        names += ["config.json", "merge.json"]
        names += [file.name for file in sorted(run.iterdir()) if _WEIGHTS.fullmatch(file.name)]
    files = {name: run / name for name in names if _there(run / name)}
    if adapter and what != "weights":
        prefix = "adapter/" if what == "both" else ""
        files |= {prefix + name: adapter / name for name in ADAPTER if _there(adapter / name)}
    return Plan(
        what=what,
        files=files,
        fold=fold,
        left_out=tuple(_left_out(run, files)),
        faults=tuple(_faults(run, files, what, fold=fold)),
    )


def _default(lineage: Lineage, adapter: Path | None) -> What:
    if lineage.is_adapter:
        return "adapter"
    return "both" if adapter else "weights"


def _there(file: Path) -> bool:
    return file.is_file() or file.is_symlink()


def _left_out(run: Path, files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    going = set(files.values())
    for file in sorted(run.iterdir()):
        if file in going or file.name in ("run.json", "adapter", "merge.json", "config.json"):
            continue
        if file.name in ADAPTER or _WEIGHTS.fullmatch(file.name):
            yield file.name, "not asked for"
        else:
            yield file.name, _why(file.name)


def _why(name: str) -> str:
    known = {"README.md": "the card is made anew", "log.jsonl": "the training log"}
    if name in known:
        return known[name]
    for pattern, why in _WHY:
        if re.match(
            rf"(?:{pattern})$", name.partition(".")[0] if why == "training state" else name
        ):
            return why
    return "not part of a checkpoint"


def _faults(run: Path, files: dict[str, Path], what: What, *, fold: bool) -> Iterator[str]:
    wanted = list(ADAPTER) if what == "adapter" else []
    if what == "both":
        wanted += [f"adapter/{name}" for name in ADAPTER]
    if what != "adapter" and not fold:
        wanted.append("config.json")
        if not any(_WEIGHTS.fullmatch(name) for name in files):
            yield _no_weights(run)
    for name in wanted:
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
    pickles = sorted(one.name for one in run.glob("*.bin"))
    if pickles:
        return f"the weights are a pickle ({pickles[0]}), which runs code when it is read: save them as safetensors"
    return "model.safetensors is missing"


def _pickled(run: Path, name: str) -> str:
    pickle = run / name.replace(".safetensors", ".bin")
    if name.endswith(".safetensors") and pickle.is_file():
        return f", and {pickle.name} is a pickle, which runs code when it is read: save it as safetensors"
    return ""
