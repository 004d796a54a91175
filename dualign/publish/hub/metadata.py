"""Metadata of models and datasets on the hub: commit, license, languages, hashes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RepoMetadata:
    """A repository at a commit. `sha256` is by file, for those that the hub keeps as LFS."""

    commit: str | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class HubClient:
    """The hub, with a cache of its answers. After a failed connection it isn't asked again."""

    reachable: bool = True
    answers: dict[tuple[str, str, str | None], RepoMetadata | None] = field(default_factory=dict)

    @property
    def in_reach(self) -> bool:
        """Whether the hub has answered, or wasn't asked yet."""
        from huggingface_hub import constants

        return self.reachable and not constants.HF_HUB_OFFLINE

    def metadata(
        self, name: str, *, kind: Literal["model", "dataset"] = "model", revision: str | None = None
    ) -> RepoMetadata | None:
        """Return the metadata; None if the hub is out of reach or hides the repository."""
        key = (kind, name, revision)
        if key not in self.answers:
            self.answers[key] = self._ask(name, kind, revision)
        return self.answers[key]

    def _ask(self, name: str, kind: str, revision: str | None) -> RepoMetadata | None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        if not self.in_reach:
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
        return _parsed(info)


def _parsed(info: Any) -> RepoMetadata:
    card = info.card_data.to_dict() if info.card_data else {}
    license, languages = card.get("license"), card.get("language") or ()
    files = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs}
    return RepoMetadata(
        commit=info.sha,
        license=str(license).lower() if isinstance(license, str) else None,
        languages=(languages,) if isinstance(languages, str) else tuple(map(str, languages)),
        sha256=files,
    )


def cached_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a branch or tag at the time when the hub's cache was filled."""
    ref = _cache_folder(name) / "refs" / (revision or "main")
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def cached_snapshot(name: str, commit: str) -> Path | None:
    """Return the folder of a commit in the hub's cache, if its weights are there."""
    snapshot = _cache_folder(name) / "snapshots" / commit
    return snapshot if any(snapshot.glob("*.safetensors")) else None


def _cache_folder(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
