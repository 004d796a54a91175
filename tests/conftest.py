"""Fixtures that several folders of tests share. What they import is heavy: inside of them only."""

import atexit
import gc
import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.processes import (  # noqa: F401 - hooks
    once,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_sessionstart,
)

# The files that take longest, by seconds of CPU. They go first, so that the workers of `make test` end together.
LONGEST = (
    "training/test_many_processes.py",
    "publish/test_road.py",
    "cost/test_memory.py",
    "training/test_resume.py",
    "experiments/test_experiment.py",
    "pipeline/test_tiny_road.py",
    "training/test_lora_across_stages.py",
    "merging/adapters/test_soup.py",
    "publish/test_publish.py",
    "test_api.py",
    "preference/test_step.py",
    "checkpoints/test_adapters.py",
    "test_engine.py",
    "publish/test_planted_faults.py",
    "merging/test_output.py",
    "merging/sweep/test_sweep.py",
    "report/test_report.py",
)


def pytest_configure() -> None:
    """Let no property test fail since the machine is busy, and collect garbage as the command does."""
    from hypothesis import HealthCheck, settings

    # trackio reads this when it is imported, which trl does: not into the folder of the user.
    os.environ["TRACKIO_DIR"] = folder = mkdtemp(prefix="trackio-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    gc.set_threshold(50_000)  # among half a million objects that imports make and that stay

    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile("any machine", deadline=None, suppress_health_check=checks)
    settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Leave modules and tests out of what the garbage collector looks at."""
    _freeze()


@pytest.fixture(autouse=True, scope="module")
def little_for_the_garbage_collector() -> None:
    """Leave out what libraries imported since then: each trainer and stage collects, a second among all of it."""
    _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = [Path(__file__).parent / name for name in LONGEST]
    items.sort(key=lambda item: files.index(item.path) if item.path in files else len(files))


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The real SmolLM2-135M-Instruct as a model folder, converted once per machine."""
    from dualign.checkpoints.embedded import embedded_model

    return embedded_model()


@pytest.fixture(scope="session")
def shrunk(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer cut to its first 4,096 tokens, and a model of 8 features: loaded in a tenth of the time."""
    from transformers import AutoConfig, LlamaForCausalLM

    tokens = 4096
    folder = tmp_path_factory.mktemp("models") / "shrunk"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = AutoConfig.from_pretrained(embedded, vocab_size=tokens, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(embedded / name, folder / name)
    whole = json.loads((embedded / "tokenizer.json").read_text(encoding="utf-8"))
    model = whole["model"]
    vocab = {token: number for token, number in model["vocab"].items() if number < tokens}
    merges = [pair for pair in model["merges"] if "".join(pair) in vocab]
    cut = whole | {"model": model | {"vocab": vocab, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(cut), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model; see LEARNT for what it says."""
    from tests.chat_model import learn, make_model, make_tokenizer

    def make(folder: Path) -> None:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer)
        learn(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return once(tmp_path_factory, "learnt", make)


@pytest.fixture(scope="session")
def learnt_gguf(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that model, for llama.cpp."""
    from dualign.export.convert import write_exact
    from dualign.export.llama_runtime import installed
    from dualign.export.model_source import open_source

    if "xllamacpp" not in installed():
        pytest.skip("needs xllamacpp, which runs llama.cpp")

    def make(folder: Path) -> None:
        mergeable = shutil.copytree(learnt, folder / "model")
        _add_a_merge(mergeable / "tokenizer.json")
        source = open_source(str(mergeable), name="learnt", foreign=False)
        write_exact(source, folder / "learnt.gguf", "f32", None)

    return once(tmp_path_factory, "learnt_gguf", make) / "learnt.gguf"


def _add_a_merge(file: Path) -> None:
    """llama.cpp wants a merge: one of bytes that no UTF-8 has, in the place of another such byte."""
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["\u00fe\u00fe"] = vocabulary.pop("\u00ff")
    content["model"]["merges"] = [["\u00fe", "\u00fe"]]
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def learnt_server(learnt_gguf: Path) -> Iterator[str]:
    """The address of llama.cpp's server with that model."""
    from tests.generation.servers import llama_server

    with llama_server(learnt_gguf) as address:
        yield address


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four sums as a task, with a difficulty."""
    from tests.chat_model import LEARNT

    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"id": question, "question": question, "answer": answer, "difficulty": number}
        for number, (question, (_, answer, _)) in enumerate(LEARNT.items())
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "sums.jsonl").write_text(lines, encoding="utf-8")
    file = folder / "sums.yaml"
    file.write_text(
        "name: sums\nrows: sums.jsonl\nprompt: 'What is {question}?'\nverifier: integer\n",
        encoding="utf-8",
    )
    return file


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data, and what is known of files, stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DUALIGN_TOKENS"] = str(folder / "tokens")
    os.environ["DUALIGN_DIGESTS"] = str(folder / "digests.json")


@pytest.fixture(scope="session")
def deepspeed() -> None:
    """DeepSpeed is here; the first launch compiles its op, once for the machine."""
    if find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")


@pytest.fixture
def generated(monkeypatch):
    """The number of tokens of all prompts, and of what was written, in this process."""
    import dualign.generation.responders as responders  # light until a test needs it

    counts = {"prompts": 0, "tokens": 0}
    real = responders.generate_batches

    def counting(*args, **options):
        for batch in real(*args, **options):
            counts["prompts"] += len(batch)
            counts["tokens"] += sum(len(item.token_ids) for item in batch.values())
            yield batch

    monkeypatch.setattr(responders, "generate_batches", counting)
    return counts
