"""SHA-256 of files: while they are written, and remembered."""

import hashlib
import itertools
import os
import random
from pathlib import Path

import pytest

from dualign.errors import MergeError
from dualign.fingerprint import Digests
from dualign.hashing import StreamingSha256, sha256
from dualign.merging.provenance import BackgroundHashes


def test_a_file_written_in_any_order_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(700_001)
    cuts = [0, *sorted(random.Random(1).sample(range(1, len(content)), 9)), len(content)]
    stretches = list(itertools.pairwise(cuts))
    for seed in range(5):
        random.Random(seed).shuffle(stretches)
        handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        digest = StreamingSha256(handle)
        for start, stop in stretches:
            os.pwrite(handle, content[start:stop], start)
            digest.add(start, stop)
        os.close(handle)
        assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, memory = tmp_path / "file", tmp_path / "digests.json"
    file.write_bytes(b"before")
    first = Digests(memory)
    before = first.file(file)
    first.save()
    read: list[int] = []
    assert Digests(memory).file(file, read.append) == before
    assert read == [6]
    stat = file.stat()
    # Another file of the same size with the same time, as `cp -p` or a restored backup leaves it.
    (tmp_path / "new").write_bytes(b"behind")
    os.utime(tmp_path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "new").rename(file)
    assert Digests(memory).file(file) == hashlib.sha256(b"behind").hexdigest()


def test_what_is_remembered_of_files_that_are_gone_is_dropped(tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    digests = Digests(memory)
    for name in ("kept", "gone"):
        (tmp_path / name).write_text(name)
        digests.file(tmp_path / name)
    (tmp_path / "gone").unlink()
    digests.save()
    assert str(tmp_path / "kept") in memory.read_text()
    assert str(tmp_path / "gone") not in memory.read_text()


def test_a_memory_that_cannot_be_read_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for broken in ("", "[1]", '{"a": 3}', "{"):
        (tmp_path / "digests.json").write_text(broken)
        found = Digests(tmp_path / "digests.json").file(tmp_path / "file")
        assert found == hashlib.sha256(b"x").hexdigest()


def test_hashing_beside_a_block_ends_with_it(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    large.touch()
    os.truncate(large, 1 << 30)  # takes no room on the disk, and a second to read
    digests = Digests()
    with BackgroundHashes([small], digests) as hashes:
        digest = hashes.wait()
    assert digest == {small: hashlib.sha256(b"abc").hexdigest()}
    with pytest.raises(MergeError), BackgroundHashes([large], digests):
        raise MergeError("not finite")
    read: list[int] = []
    digests.file(large, read.append)
    assert len(read) > 1, "it was given up, so it has to be read now"
