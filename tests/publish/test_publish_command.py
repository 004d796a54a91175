"""`dualign publish` in the terminal: what fails is told; test_publish.py has a dry run that succeeds."""

from pathlib import Path

import pytest

from dualign.cli.main import main


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no hub, whatever this machine has."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_failed_checks_stop_the_publication_with_status_1(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "merged" / "tokenizer.json").unlink()
    assert main(["publish", str(copied / "merged"), "someone/tiny", "--yes"]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("not published: ")
    assert {"files", "base", "license", "hub"} <= set(last.replace(",", "").split())


def test_what_cannot_be_is_one_line_and_status_2(
    road: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(road), "someone/tiny"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and "its stages are apo, data, eval, folded, merged, sft" in error
    )
    assert main(["publish", str(road / "sft"), "x/y", "--out", str(road)]) == 2
    assert "is there already; choose another folder" in capsys.readouterr().err
    assert main(["publish", str(road / "sft"), "x/y", "--license-of", "train"]) == 2
    assert "expected SOURCE=ID, such as problems=apache-2.0" in capsys.readouterr().err


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["publish", "--help"])
    out = capsys.readouterr().out
    for text in (
        "examples:",
        "--license-of problems=apache-2.0",
        "Without --yes nothing leaves",
        "hf auth login",
    ):
        assert text in out
