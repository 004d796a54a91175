"""Tokens, keys and paths: where they are is told, what they are isn't."""

from pathlib import Path

import pytest

from dualign.publish.checks.secrets import paths_in, secret_kinds, secrets_in

SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an OpenAI or Anthropic key": "sk-proj-" + "x9" * 20,
    "an AWS access key": "AKIA" + "ABCD1234EFGH5678",
    "an AWS secret": 'aws_secret_access_key = "' + "a/B+" * 10 + '"',
    "a GitHub token": "ghp_" + "z" * 36,
    "a Google key": "AIza" + "s" * 35,
    "a Slack token": "xoxb-1234567890-abc",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a key in a variable": "WANDB_API_KEY=" + "0123456789abcdef" * 2,
    "a password in an address": "https://ada:lovelace@example.org/data",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_each_kind_of_secret_is_found_with_its_place_and_never_shown(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(f'{{\n  "note": "{SECRETS[kind]}"\n}}\n')
    (leak,) = secrets_in(tmp_path, ["run.json"])
    assert str(leak) == f"run.json:2 holds {kind}"
    assert SECRETS[kind] not in repr(leak)


@pytest.mark.parametrize(
    "text",
    [
        '"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"',
        "hf_hub_download, sk-learn, AKIA, hf_tiny",
        "https://huggingface.co/someone/tiny",
        '"sha256": "b6824de79c5ee0299b8eef8e826fdbfbbe703fa3e3b8b46db6ca21d192095a5e"',
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_what_looks_like_a_secret_and_is_none_passes(text: str) -> None:
    assert secret_kinds(text) == []


def test_the_token_of_the_user_is_found_whatever_it_looks_like() -> None:
    assert secret_kinds("x-own-y", token="own") == ["the token that you are logged in with"]


def test_the_header_of_a_binary_file_is_looked_at(tmp_path: Path) -> None:
    text = b'{"__metadata__": {"note": "hf_' + b"q" * 34 + b'"}}'
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert [leak.kind for leak in secrets_in(tmp_path, ["model.safetensors"])] == [
        "a Hugging Face token"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"path": "/home/ada/data/train.jsonl"', True),
        ("/tmp/run7/model", True),
        ("~/runs/mine", True),
        ("C:\\\\Users\\\\ada", True),
        ("https://example.org/home/ada/x", False),
        ("/think and /no_think, and/or, 1/2/3", False),
        ("stage:data/train.jsonl, figures/loss.png", False),
        ("http://localhost:8000/v1/chat/completions", False),
        ("The drive at '/mnt/data' can be used", False),  # gpt-oss' template
        ("/mnt/data/ada, /mnt/data2/x", True),
    ],
)
def test_paths_of_a_machine_are_told_from_other_slashes(
    text: str, found: bool, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(text)
    assert bool(list(paths_in(tmp_path, ["README.md"]))) == found


def test_a_vocabulary_may_hold_a_path(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"/tmp/x": 17}')
    assert not list(paths_in(tmp_path, ["tokenizer.json"]))
