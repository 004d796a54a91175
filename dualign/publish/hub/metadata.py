"""What the hub says of models and datasets: commit, licence, languages, hashes. Asked once; nothing is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """One repository at one commit. `sha256` is by file, of those that the hub keeps as LFS."""

    commit: str | None
    licence: str | None
    languages: tuple[str, ...]
    sha256: Mapping[str, str]


@dataclass(kw_only=True, slots=True)
class Hub:
    """The hub, as far as it can be reached. After one failed connection nothing more is asked."""

    reachable: bool = True
    known: dict[tuple[str, str, str | None], Facts | None] = field(default_factory=dict)

    def facts(
        self, name: str, *, kind: Literal["model", "dataset"] = "model", revision: str | None = None
    ) -> Facts | None:
        """What the hub says; None where it can't be reached, or has no such repository for this user."""
        key = (kind, name, revision)
        if key not in self.known:
            self.known[key] = self._ask(name, kind, revision)
        return self.known[key]

    def _ask(self, name: str, kind: str, revision: str | None) -> Facts | None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        if not self.reachable or constants.HF_HUB_OFFLINE:
            return None
        api = HfApi()
        try:
            info = api.repo_info(
                name, repo_type=kind, revision=revision, files_metadata=True, timeout=_SECONDS
            )
        except (HfHubHTTPError, HFValidationError):
            return None
        except (OfflineModeIsEnabled, OSError):
            self.reachable = False
            return None
        except Exception as error:  # the HTTP library's own errors, which changed with its versions
            if "http" not in type(error).__module__:
                raise
            self.reachable = False
            return None
        return _facts(info)


def _facts(info: Any) -> Facts:
    card = info.card_data.to_dict() if info.card_data else {}
    licence, languages = card.get("license"), card.get("language") or ()
    files = {one.rfilename: one.lfs.sha256 for one in info.siblings or () if one.lfs}
    return Facts(
        commit=info.sha,
        licence=str(licence).lower() if isinstance(licence, str) else None,
        languages=(languages,) if isinstance(languages, str) else tuple(map(str, languages)),
        sha256=files,
    )


def cached_commit(name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stood for when the hub's cache was filled, without asking the hub."""
    from pathlib import Path

    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    ref = folder / "refs" / (revision or "main")
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def cached_snapshot(name: str, commit: str) -> str | None:
    """The folder of a commit in the hub's cache, if its weights are there."""
    from pathlib import Path

    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    snapshot = folder / "snapshots" / commit
    return str(snapshot) if any(snapshot.glob("*.safetensors")) else None
