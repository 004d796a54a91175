"""SmolLM3 in small: a model of its architecture, and rows with the columns that smoltalk2 has.

The rows are written as parquet with the columns' full types, so that a column that is null
throughout keeps its type, as on the hub. They cover what differs between splits: modes, personas,
tools, several turns.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Row = dict[str, Any]

_MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
_KWARGS = pa.struct(
    [
        ("custom_instructions", pa.string()),
        ("enable_thinking", pa.bool_()),
        ("python_tools", pa.list_(pa.string())),
        ("xml_tools", pa.list_(pa.string())),
    ]
)
SCHEMAS = {
    "Mid": pa.schema([("messages", _MESSAGES), ("source", pa.string())]),
    "SFT": pa.schema(
        [("messages", _MESSAGES), ("chat_template_kwargs", _KWARGS), ("source", pa.string())]
    ),
    "Preference": pa.schema(
        [
            ("chosen", _MESSAGES),
            ("rejected", _MESSAGES),
            ("prompt", pa.string()),
            ("chat_template_kwargs", _KWARGS),
            ("source", pa.string()),
        ]
    ),
}

# What only a small run on a CPU needs; the rest of a recipe stays as it is.
SMALL_MODEL = ("revision=null", "dtype=float32", "attn_implementation=sdpa")
SMALL_TRAINING = (
    "train.bf16=false",
    "train.use_cpu=true",
    "train.max_steps=2",
    "train.save_strategy='no'",
    "train.gradient_accumulation_steps=2",
)


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def template_kwargs(*, think: bool, **more: Any) -> Row:
    """The struct of a row: absent entries are null, as in the hub's files."""
    empty = {"custom_instructions": None, "python_tools": None, "xml_tools": None}
    return {**empty, "enable_thinking": think, **more}


def traced(thinking: str, answer: str) -> str:
    return f"<think>\n{thinking}\n</think>\n\n{answer}"


def mid_rows(rows: int = 12) -> list[Row]:
    """Config Mid: one question, one traced answer, no kwargs column."""
    return [
        {
            "messages": [
                turn("user", f"What is {n} times 7?"),
                turn(
                    "assistant",
                    traced(f"Seven times {n}: {n * 5} and {n * 2} make {n * 7}.", f"{n * 7}"),
                ),
            ],
            "source": "open_thoughts",
        }
        for n in range(1, rows + 1)
    ]


def no_think_rows(rows: int = 12) -> list[Row]:
    """Config SFT, splits `*_no_think`: personas, several turns, functions, and neither."""
    kinds = [_persona, _several_turns, _function_call, _plain]
    return [kinds[n % len(kinds)](n) for n in range(rows)]


def think_rows(rows: int = 12) -> list[Row]:
    """Config SFT, splits `*_think`: a trace in each assistant turn, code tools, personas."""
    kinds = [_traced_turns, _code_tools, _traced_persona]
    return [kinds[n % len(kinds)](n) for n in range(rows)]


def preference_rows(*, think: bool, rows: int = 12) -> list[Row]:
    """Config Preference: `prompt` is text; chosen and rejected are conversations that repeat it."""

    def pair(n: int) -> Row:
        question, right = f"How many legs have {n} cats?", f"{4 * n} legs."
        good = traced(f"Each cat has 4, so 4 times {n}.", right) if think else right
        bad = traced("Cats have legs.", "Some.") if think else "Some."
        return {
            "prompt": question,
            "chosen": [turn("user", question), turn("assistant", good)],
            "rejected": [turn("user", question), turn("assistant", bad)],
            "chat_template_kwargs": template_kwargs(think=think),
            "source": "tulu-3",
        }

    return [pair(n) for n in range(1, rows + 1)]


def _row(messages: list[Row], source: str, **kwargs: Any) -> Row:
    return {
        "messages": messages,
        "chat_template_kwargs": template_kwargs(**kwargs),
        "source": source,
    }


def _plain(n: int) -> Row:
    return _row(
        [turn("user", f"Name {n} colours."), turn("assistant", "Red, green, blue.")],
        "openhermes",
        think=False,
    )


def _persona(n: int) -> Row:
    messages = [turn("user", f"Set up phone {n}."), turn("assistant", "Even at night, I can help.")]
    return _row(
        messages, "systemchats", think=False, custom_instructions="You are a vampire technologist"
    )


def _several_turns(n: int) -> Row:
    messages = [
        turn("user", "Hi"),
        turn("assistant", "Hello!"),
        turn("user", f"Count to {n}."),
        turn("assistant", "Done."),
    ]
    return _row(
        messages, "everyday", think=False, custom_instructions="", python_tools=[], xml_tools=[]
    )


def _function_call(n: int) -> Row:
    call = f'<tool_call>\n{{"name": "weather", "arguments": {{"day": {n}}}}}\n</tool_call>'
    messages = [
        turn("user", f"Weather on day {n}?"),
        turn("assistant", call),
        turn("tool", '{"sky": "clear"}'),
        turn("assistant", "It is clear."),
    ]
    tools = ['{"name": "weather", "parameters": {"day": {"type": "integer"}}}']
    return _row(messages, "xlam", think=False, xml_tools=tools)


def _traced_turns(n: int) -> Row:
    messages = [
        turn("user", f"Is {n} even?"),
        turn("assistant", traced(f"{n} modulo 2 is {n % 2}.", "Yes." if n % 2 == 0 else "No.")),
        turn("user", "And the next number?"),
        turn("assistant", traced("It alternates.", "No." if n % 2 == 0 else "Yes.")),
    ]
    return _row(messages, "multi_turn_if", think=True)


def _code_tools(n: int) -> Row:
    messages = [
        turn("user", f"Square {n}."),
        turn("assistant", traced("The tool squares.", f"<code>\nprint(square({n}))\n</code>")),
        turn("user", f"{n * n}"),
        turn("assistant", traced("That is the result.", f"{n * n}")),
    ]
    return _row(messages, "smolagents", think=True, python_tools=["def square(x: int) -> int: ..."])


def _traced_persona(n: int) -> Row:
    messages = [
        turn("user", f"Greet guest {n}."),
        turn("assistant", traced("A pirate says ahoy.", "Ahoy!")),
    ]
    return _row(messages, "systemchats_qwen3", think=True, custom_instructions="You are a pirate")


def write_rows(path: Path, rows: list[Row], config: str) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[config]), path)
    return path


@pytest.fixture(scope="session")
def smoltalk2(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(config, mode) -> parquet file; the configs are Mid, SFT and Preference."""
    folder = tmp_path_factory.mktemp("smoltalk2")
    rows = {
        ("Mid", "think"): mid_rows(),
        ("SFT", "no_think"): no_think_rows(),
        ("SFT", "think"): think_rows(),
        ("Preference", "no_think"): preference_rows(think=False),
        ("Preference", "think"): preference_rows(think=True),
    }
    return {
        (config, mode): write_rows(folder / f"{config}-{mode}.parquet", made, config)
        for (config, mode), made in rows.items()
    }


@pytest.fixture(scope="session")
def tiny_smollm3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of 4 layers, the last without positions, and a tokenizer with chat tokens."""
    folder = tmp_path_factory.mktemp("tiny") / "smollm3"
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    _model(tokenizer).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # The base model's tokens: it ends a text, but not yet a turn.
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    chat = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[*special, *chat],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[2],
        additional_special_tokens=chat[:2],
        model_max_length=1024,
    )


def _texts() -> Iterator[str]:
    yield "## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 01 July 2025\n" * 8
    yield (
        "Reasoning Mode: /no_think\n\n## Custom Instructions\n\nYou are a helpful assistant.\n\n"
        * 8
    )
    yield "## Tools\n\n### XML Tools\n\nNone\n\n### Python Tools\n\nNone\n\n" * 8
    for row in [*mid_rows(), *no_think_rows(), *think_rows()]:
        yield from (message["content"] for message in row["messages"])


def _model(tokenizer: Any) -> Any:
    import torch
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return SmolLM3ForCausalLM(config)


@pytest.fixture(scope="session")
def small_overrides(
    tiny_smollm3: Path,
    smoltalk2: dict[tuple[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., list[str]]:
    """Overrides that make a full-size stage recipe run here: `small_overrides("SFT", lora_rank=4)`.

    Model, rows and lengths are replaced; template, masks, packing, loss and schedule stay.
    """

    def overrides(
        config: str, *, model: Path | None = None, lora_rank: int | None = None
    ) -> list[str]:
        sources = [
            f"{{path: '{path}', mode: {mode}, label: {mode}}}"
            for (of, mode), path in smoltalk2.items()
            if of == config
        ]
        made = [f"output_dir={tmp_path_factory.mktemp('run')}", f"model={model or tiny_smollm3}"]
        made += [
            *SMALL_MODEL,
            *SMALL_TRAINING,
            "launch=null",
            "data.max_tokens=512",
            f"data.sources=[{', '.join(sources)}]",
        ]
        if lora_rank:
            made += [f"lora.r={lora_rank}", f"lora.lora_alpha={2 * lora_rank}", "quantization=null"]
        return made

    return overrides
