"""References to models, taken apart by one parser."""

from pathlib import Path

import pytest

from dualign.model_ref import HubRef, ModelRef, StageRef


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("gpt2", "hub", "gpt2", None),
        ("owner/name", "hub", "owner/name", None),
        ("owner/name.v1_2-x", "hub", "owner/name.v1_2-x", None),
        ("owner/name@main", "hub", "owner/name", "main"),
        ("owner/name@refs/pr/1", "hub", "owner/name", "refs/pr/1"),
        ("here", "path", "here", None),
        ("own/er", "path", "own/er", None),
        ("with+plus", "path", "with+plus", None),
        ("./gone", "path", "gone", None),
        ("../gone", "path", "../gone", None),
        (".", "path", ".", None),
        ("/no/such", "path", "/no/such", None),
        ("a/b/c", "path", "a/b/c", None),
        ("a name", "path", "a name", None),
        ("embedded:tiny", "embedded", "embedded:tiny", None),
        ("stage:sft", "stage", "stage:sft", None),
        ("stage:sft/adapter", "stage", "stage:sft/adapter", None),
    ],
)
def test_each_form_is_told_from_the_others(
    text: str,
    kind: str,
    name: str,
    revision: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("here", "own/er", "with+plus"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    ref = ModelRef.parse(text)
    assert (ref.kind, ref.name, ref.revision) == (kind, name, revision)
    assert ref.is_plain
    assert ref.is_local == (kind != "hub")
    assert ref.path == (Path(name) if kind == "path" else None)


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert ModelRef.parse("~/sft").path == Path("/home/ada/sft")
    assert ModelRef.parse("~nobody-of-that-name/sft").kind == "path"


def test_adapters_and_nf4_go_with_the_base() -> None:
    ref = ModelRef.parse("nf4-bfloat16:owner/base@main+./one+owner/two@v2")
    assert (ref.kind, ref.name, ref.revision) == ("hub", "owner/base", "main")
    assert (ref.nf4, ref.nf4_dtype, ref.is_plain) == (True, "bfloat16", False)
    assert [(a.kind, a.name, a.revision) for a in ref.adapters] == [
        ("path", "one", None),
        ("hub", "owner/two", "v2"),
    ]
    assert ModelRef.parse("nf4:embedded:tiny").nf4_dtype is None
    assert ModelRef.parse("nf4:embedded:tiny").kind == "embedded"


def test_a_revision_in_the_id_goes_before_one_that_is_given_with_it() -> None:
    assert ModelRef.parse("owner/name", revision="v1").revision == "v1"
    assert ModelRef.parse("owner/name@v2", revision="v1").revision == "v2"
    assert ModelRef.parse("./gone", revision="v1").revision is None


def test_stages_and_hub_ids_are_taken_apart() -> None:
    assert StageRef.parse("stage:sft/a/b") == ("sft", "a/b")
    assert StageRef("sft", "a/b").label == "sft/a/b"
    assert StageRef("sft", "").label == "sft"
    assert StageRef.parse("sft") is None
    assert HubRef.parse("owner/name@v1") == ("owner/name", "v1")
    for text in ("/name", "a/b/c", ".hidden/x", "owner/", "a b", "x:y", "owner/name@", ""):
        assert HubRef.parse(text) is None, text
