"""The header reader on bytes that no one wrote with care."""

import json
import struct
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from dualign.checkpoints.header import TensorSpec, read_header, write_header
from dualign.errors import CheckpointError

entries = st.dictionaries(
    st.text(max_size=3),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "x", 3]),
            "shape": st.lists(st.integers(-1, 3) | st.none() | st.booleans(), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 20), max_size=3),
        }
    )
    | st.none()
    | st.integers(),
    max_size=3,
)


def refused(file: Path) -> bool:
    try:
        read_header(file)
    except CheckpointError as error:
        assert str(file) in str(error)
        return True
    return False


@settings(max_examples=150)
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(data)
    refused(file)


@settings(max_examples=200)
@given(entries, st.integers(0, 40))
def test_what_is_accepted_is_accepted_by_safetensors_too(
    tmp_path_factory, header: dict, size: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "made.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    if refused(file):
        return
    try:
        with safe_open(file, "np") as other:
            names = set(other.keys())
    except SafetensorError as error:  # it asks for a header of two bytes at least
        raise AssertionError(f"accepted {header} with {size} bytes: {error}") from None
    assert set(read_header(file)) == names


@settings(max_examples=100)
@given(st.data())
def test_a_changed_byte_never_reads_outside_of_the_file(tmp_path_factory, data) -> None:
    planned = [TensorSpec("a", (2, 3), "F32"), TensorSpec("b", (5,), "BF16")]
    whole = bytearray(write_header(planned) + bytes(34))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "changed.safetensors"
    file.write_bytes(whole)
    if not refused(file):
        for entry in read_header(file).values():
            assert 0 <= entry.offset <= entry.offset + entry.nbytes <= len(whole)
