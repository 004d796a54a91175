"""`dualign eval MODEL --probe long`."""

import json

import pytest

from dualign.cli.main import main


def test_the_probe_asks_at_its_lengths(learnt, tmp_path, capsys):
    arguments = ["--probe", "long", "--lengths", "600", "--forms", "needle", "--rows", "1"]
    options = ["--languages", "en,de", "--max-new-tokens", "4", "--out", str(tmp_path)]
    assert main(["eval", str(learnt), *arguments, *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["tasks"]) == ["long:needle@600/en", "long:needle@600/de"]
    assert [curve["language"] for curve in metrics["length_curves"]] == ["en", "en", "de", "de"]
    assert metrics["length_curves"][0]["points"][0]["n"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", "long"], "--probe long needs --lengths, such as --lengths 4k,8k"),
        (["--lengths", "4k", "--forms", "needle"], "--lengths, --forms belong to a probe"),
        (["--probe", "long", "--lengths", "4q"], "expected a length in tokens"),
        (["--probe", "long", "--lengths", "4k", "--languages", "xx"], "unknown language 'xx'"),
    ],
)
def test_what_the_probe_lacks_is_said(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", "no-model", *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
