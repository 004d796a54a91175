"""What a hub keeps: repositories as chains of commits, and files by their hashes, on a disk that can be full."""

import errno
import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.gguf filter=lfs diff=lfs merge=lfs -text\n"
LARGE = 10_000_000  # bytes; the Hub keeps larger files outside git


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A file of a commit. `blob` is git's name for it; `sha256` is there when it is kept outside git."""

    size: int
    blob: str
    sha256: str | None = None
    xet: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    oid: str
    message: str
    files: MappingProxyType[str, Stored]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """A pull request that is open."""

    number: int
    author: str
    title: str
    commit: Commit


@dataclass(frozen=True, kw_only=True, slots=True)
class Repo:
    name: str  # NAMESPACE/NAME; of a dataset datasets/NAMESPACE/NAME
    private: bool
    commits: tuple[Commit, ...]
    gated: str | bool = False
    pulls: tuple[Pull, ...] = ()

    @property
    def head(self) -> Commit:
        return self.commits[-1]


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(kw_only=True)
class Store:
    """`room`: bytes that the disk still takes; None is as many as there are."""

    root: Path
    room: int | None = None
    repos: dict[str, Repo] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """slug -> a collection as the Hub tells it"""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def write(self, kind: str, name: str, content: bytes) -> None:
        """Keep bytes under a name; a disk without room keeps nothing."""
        with self.lock:
            if self.room is not None and len(content) > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room = None if self.room is None else self.room - len(content)
            path = self.root / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def path(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def has(self, kind: str, name: str) -> bool:
        return self.path(kind, name).is_file()

    def content(self, stored: Stored) -> Path:
        if stored.sha256:
            return self.path("large", stored.sha256)
        return self.path("git", stored.blob)

    def keep_small(self, content: bytes) -> Stored:
        name = git_name(content)
        self.write("git", name, content)
        return Stored(size=len(content), blob=name)

    def create(self, name: str, *, private: bool) -> Repo:
        """A new repository with the commit that the Hub starts every one with."""
        start = self._commit(
            "initial commit", {".gitattributes": self.keep_small(ATTRIBUTES)}, parent=""
        )
        repo = Repo(name=name, private=private, commits=(start,))
        self.repos[name] = repo
        return repo

    def commit(
        self, name: str, message: str, changed: dict[str, Stored], gone: Iterable[str] = ()
    ) -> Commit:
        """All of the changes, as one commit on top of the head."""
        with self.lock:
            repo = self.repos[name]
            left = {path: file for path, file in repo.head.files.items() if path not in set(gone)}
            made = self._commit(message, {**left, **changed}, parent=repo.head.oid)
            self.repos[name] = replace(repo, commits=(*repo.commits, made))
            return made

    def pull(
        self,
        name: str,
        author: str,
        title: str,
        changed: dict[str, Stored],
        gone: Iterable[str] = (),
    ) -> Pull:
        """A pull request with all of the changes as one commit on top of the head, which stays."""
        with self.lock:
            repo = self.repos[name]
            left = {path: file for path, file in repo.head.files.items() if path not in set(gone)}
            commit = self._commit(title, {**left, **changed}, parent=repo.head.oid)
            made = Pull(number=len(repo.pulls) + 1, author=author, title=title, commit=commit)
            self.repos[name] = replace(repo, pulls=(*repo.pulls, made))
            return made

    def someone_commits(self, name: str, path: str = "notes.md", text: str = "mine") -> None:
        """Another person's commit, as the web page makes it."""
        self.commit(name, f"Update {path}", {path: self.keep_small(text.encode())})

    def _commit(self, message: str, files: dict[str, Stored], parent: str) -> Commit:
        tree = "".join(f"{path} {file.blob}\n" for path, file in sorted(files.items()))
        oid = hashlib.sha1(f"{parent}\n{message}\n{tree}".encode()).hexdigest()
        return Commit(oid=oid, message=message, files=MappingProxyType(dict(files)))
