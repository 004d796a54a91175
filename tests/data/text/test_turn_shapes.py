"""Where a turn ends, and where its trace stands, for families that write them in ways of their own.

The templates of trl are those of the models. The others are written to the published formats, in the
fewest words.
"""

import copy
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.text.spans import render_rows
from dualign.data.text.template import ChatTemplate, load_template
from dualign.errors import TemplateError
from dualign.models.tokenizer import end_of_turn, sync_special_tokens
from tests.data.encode import encode

FOREIGN = Path(trl.__file__).parent / "chat_templates"
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string", "description": "Where."}},
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "look", "arguments": {"where": "here"}},
}
_CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
# The next turn's token ends a turn.
GLM = (
    "[gMASK]<sop>{{ tools | tojson if tools else '' }}{% for m in messages %}{% if m.role == 'tool' %}<|observation|>\n{{ m.content }}{% else %}"
    "<|{{ m.role }}|>\n{{ m.content }}" + _CALLS + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The end is written when the user speaks, and the results of calls stand inside the assistant's turn.
APERTUS = (
    "{{ tools | tojson if tools else '' }}{% set state = namespace(open=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|assistant_end|>' if state.open else '' }}{% set state.open = false %}"
    "<|user_start|>{{ m.content }}<|user_end|>{% elif m.role == 'tool' %}[{{ m.content }}]{% else %}"
    "{{ '' if state.open else '<|assistant_start|>' }}{% set state.open = true %}{{ m.content }}"
    "{% if m.tool_calls %}<|tools_prefix|>{{ m.tool_calls[0].function | tojson }}<|tools_suffix|>{% endif %}"
    "{% endif %}{% endfor %}"
    "{{ '<|assistant_start|>' if add_generation_prompt and not state.open else '' }}"
)
# The generation prompt is there whether it is wanted or not, and an answer has two marks at its end.
COMMAND = (
    "{% for m in messages %}<|START|><|{{ m.role | upper }}|>{{ m.content }}"
    "{{ '<|END_RESPONSE|>' if m.role == 'assistant' else '' }}<|END|>{% endfor %}<|START|><|CHATBOT|>"
).replace("<|{{ m.role | upper }}|>", "<|{{ 'CHATBOT' if m.role == 'assistant' else 'USER' }}|>")
# Think turns put their answer between tags.
HUNYUAN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0] + '</think>\n<answer>\n' + m.content.split('</think>')[1].strip() }}"
    "\n</answer><|eos|>{% else %}{{ m.content }}<|eos|>{% endif %}{% else %}"
    "{{ m.content }}<|extra_0|>{% endif %}{% endfor %}"
)
# Results name their call, by an id of nine letters, as Mistral's and Gemma's do.
STRICT = (
    "{% for m in messages %}{% if m.role == 'tool' and (m.tool_call_id | length != 9 or not m.name) %}"
    "{{ raise_exception('whose result?') }}{% endif %}{% endfor %}"
) + GLM
NEEDS_TOOLS = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + GLM
MINISTRAL = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'thinking' %}[THINK]{{ part.thinking }}[/THINK]"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
# The answer has a header, and nothing reads a trace.
HEADED = (
    "{% for m in messages %}<{{ m.role }}>{{ '<final>' if m.role == 'assistant' else '' }}{{ m.content }}<end>"
    "{% endfor %}{{ '<assistant>' if add_generation_prompt else '' }}"
)
WRITTEN = {
    "glm": GLM,
    "apertus": APERTUS,
    "command": COMMAND,
    "hunyuan": HUNYUAN,
    "needs-tools": NEEDS_TOOLS,
    "strict": STRICT,
    "ministral": MINISTRAL,
    "headed": HEADED,
}
TOKENS = {
    "glm": "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
    "glm4moe": "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
    "apertus": "<|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|> <|tools_prefix|> <|tools_suffix|>",
    "command": "<|END|> <|START|> <|USER|> <|CHATBOT|> <|END_RESPONSE|>",
    "hunyuan": "<|eos|> <|extra_0|>",
    "ministral": "</s> [INST] [/INST] [THINK] [/THINK]",
    "headed": "<end> <user> <assistant> <final>",
    "phi3": "<|endoftext|> <|end|> <|user|> <|assistant|> <|system|>",
    "gptoss": "<|return|> <|start|> <|message|> <|end|> <|channel|> <|call|>",
    "gemma4_v5": "<turn|> <|turn> <|tool_call> <tool_call|> <|tool_response> <tool_response|> <|channel> <channel|>",
    "lfm2_2_5": "<|im_end|> <|im_start|> <|tool_call_start|> <|tool_call_end|>",
}
TOKENS["needs-tools"] = TOKENS["strict"] = TOKENS["glm"]
EOS = {"command": "<|END|>", "hunyuan": "<|eos|>"}


@pytest.fixture
def load(llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):  # type: ignore[no-untyped-def]
    def of(name: str) -> tuple[ChatTemplate, PreTrainedTokenizerFast]:
        path = FOREIGN / f"{name}.jinja"
        if name in WRITTEN:
            path = tmp_path / f"{name}.jinja"
            path.write_text(WRITTEN[name])
        tokens = TOKENS[name].split()
        used = copy.deepcopy(llama_tokenizer)
        used.add_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
        used.add_tokens(["<tool_call>", "</tool_call>", "<answer>", "</answer>"])
        used.eos_token = EOS.get(name, tokens[0])
        return load_template(str(path), tokenizer=used), used

    return of


def turns(mode: Mode, *, count: int = 1, calls: bool = False) -> Conversation:
    """`count` questions; with `calls` the first is answered by a call and its result."""
    messages = []
    for turn in range(count):
        thinking = f"why {turn}" if mode == "think" else None
        messages.append(Message(role="user", content=f"question {turn}"))
        if calls and not turn:
            call = Message(role="assistant", content="", thinking="I look", tool_calls=(CALL,))
            messages += [
                call
                if mode == "think"
                else Message(role="assistant", content="", tool_calls=(CALL,))
            ]
            result = Message(role="tool", content="a tree", name="look", tool_call_id="abcdefghi")
            messages += [result]
        messages.append(Message(role="assistant", content=f"answer {turn}", thinking=thinking))
    tools = (TOOL,) if calls else ()
    return Conversation(messages=tuple(messages), mode=mode, source="rows", row=0, tools=tools)


def learnt(template: ChatTemplate, used: PreTrainedTokenizerFast, row: Conversation) -> list[str]:
    """The supervised texts, which the labels of the tokens spell too."""
    rows = render_rows(template, row, "assistant")
    for rendered in rows:
        example = encode(rendered, used, max_tokens=None)
        texts = "".join(rendered.text[start:stop] for start, stop in rendered.spans)
        assert used.decode([label for label in example.labels if label >= 0]) == texts
    return [rendered.text[start:stop] for rendered in rows for start, stop in rendered.spans]


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
CASES = {
    "glm": (turns("no_think", count=2), ["answer 0<|user|>", "answer 1<|user|>"]),
    "glm call": (
        turns("no_think", calls=True),
        ['<tool_call>look{"where": "here"}</tool_call><|observation|>', "answer 0<|user|>"],
    ),
    "glm4moe call": (
        turns("think", calls=True),
        [
            "\n<think>I look</think>\n<tool_call>look\n<arg_key>where</arg_key>\n<arg_value>here</arg_value>\n"
            "</tool_call><|observation|>",
            "\n<think>why 0</think>\nanswer 0<|user|>",
        ],
    ),
    "apertus": (
        turns("no_think", count=2),
        ["answer 0<|assistant_end|>", "answer 1<|assistant_end|>"],
    ),
    "apertus call": (
        turns("no_think", calls=True),
        [
            '<|tools_prefix|>{"name": "look", "arguments": {"where": "here"}}<|tools_suffix|>',
            "answer 0<|assistant_end|>",
        ],
    ),
    "command": (
        turns("no_think", count=2),
        ["answer 0<|END_RESPONSE|><|END|>", "answer 1<|END_RESPONSE|><|END|>"],
    ),
    "hunyuan": (turns("no_think"), ["answer 0<|eos|>"]),
    "hunyuan think": (
        turns("think"),
        ["<think>\nwhy 0\n</think>\n<answer>\nanswer 0\n</answer><|eos|>"],
    ),
    "needs-tools call": (
        turns("no_think", calls=True),
        ['<tool_call>look{"where": "here"}</tool_call><|observation|>', "answer 0<|user|>"],
    ),
    "strict call": (
        turns("no_think", calls=True),
        ['<tool_call>look{"where": "here"}</tool_call><|observation|>', "answer 0<|user|>"],
    ),
    "ministral": (turns("no_think"), ["answer 0</s>"]),
    "ministral think": (turns("think"), ["[THINK]why 0[/THINK]answer 0</s>"]),
    "phi3": (turns("no_think", count=2), ["answer 0<|end|>", "answer 1<|end|>"]),
    "gptoss": (turns("no_think"), [f"{FINAL}answer 0<|return|>"]),
    "gptoss think": (
        turns("think", count=2),
        [
            f"{ANALYSIS}why {turn}<|end|><|start|>assistant{FINAL}answer {turn}<|return|>"
            for turn in range(2)
        ],
    ),
    "gptoss call": (
        turns("no_think", calls=True),
        [
            ' to=functions.look<|channel|>commentary json<|message|>{"where": "here"}<|call|>',
            f"{FINAL}answer 0<|return|>",
        ],
    ),
    "gemma4_v5 think": (
        turns("think"),
        ["<|channel>thought\nwhy 0\n<channel|>answer 0<turn|>"],
    ),
    "gemma4_v5 call": (
        turns("no_think", calls=True),
        [
            '<|tool_call>call:look{where:<|"|>here<|"|>}<tool_call|><|tool_response>',
            "answer 0<turn|>",
        ],
    ),
    "lfm2_2_5 think": (turns("think"), ["<think>why 0</think>answer 0<|im_end|>"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_supervised_text_is_what_the_model_writes_until_it_stops(case: str, load) -> None:  # type: ignore[no-untyped-def]
    row, expected = CASES[case]
    assert learnt(*load(case.split()[0]), row) == expected


@pytest.mark.parametrize("case", ["gptoss think", "gemma4_v5 think", "ministral think"])
@pytest.mark.parametrize("policy", ["answers", "thinking"])
def test_the_trace_and_the_answer_are_told_apart_in_any_form(  # type: ignore[no-untyped-def]
    case: str, policy: str, load
) -> None:
    (whole, *_), (template, _) = CASES[case][1], load(case.split()[0])
    (rendered, *_) = render_rows(template, CASES[case][0], policy)  # type: ignore[arg-type]
    ((start, stop),) = rendered.spans
    answer = whole[whole.index("answer 0") :]
    expected = answer if policy == "answers" else whole.removesuffix(answer)
    assert rendered.text[start:stop] == expected


def test_a_trace_that_would_stand_in_the_answer_is_refused(load) -> None:  # type: ignore[no-untyped-def]
    template, used = load("headed")
    assert learnt(template, used, turns("no_think")) == ["<final>answer 0<end>"]
    with pytest.raises(TemplateError, match="writes it into the answer, after '<final><think>'"):
        render_rows(template, turns("think"), "assistant")


@pytest.mark.parametrize("trace", ["think", "<", "th", "answer 0"])
def test_a_trace_of_a_tag_s_letters_is_told_from_the_tag(trace: str, load) -> None:  # type: ignore[no-untyped-def]
    template, used = load("phi3")
    answer = Message(role="assistant", content="answer 0", thinking=trace)
    row = Conversation(
        messages=(Message(role="user", content="?"), answer), mode="think", source="rows", row=0
    )
    assert learnt(template, used, row) == [f"<think>\n{trace}\n</think>\n\nanswer 0<|end|>"]
    (rendered,) = render_rows(template, row, "answers")
    assert [rendered.text[start:stop] for start, stop in rendered.spans] == ["answer 0<|end|>"]


def test_a_trace_after_the_call_is_refused() -> None:
    template = load_template(str(FOREIGN / "gemma4_v2.jinja"))
    with pytest.raises(TemplateError, match="writes the trace after the call of look"):
        render_rows(template, turns("think", calls=True), "assistant")


def test_a_turn_that_repeats_the_header_after_a_result_is_refused() -> None:
    template = load_template(str(FOREIGN / "diffusion_gemma.jinja"))
    with pytest.raises(TemplateError, match=r"<\|turn>model\\nanswer 0.* \[prompt_supervised\]"):
        render_rows(template, turns("no_think", calls=True), "assistant")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("glm", ("<|user|>", "<|observation|>")),
        ("strict", ("<|user|>", "<|observation|>")),
        ("gptoss", ("<|return|>", "<|call|>")),
        ("gemma4_v5", ("<turn|>", "<|tool_response>")),
        ("apertus", ("<|assistant_end|>", "<|tools_suffix|>")),
        ("command", ("<|END|>",)),
        ("phi3", ("<|end|>",)),
    ],
)
def test_the_saved_model_stops_at_every_end_of_turn(  # type: ignore[no-untyped-def]
    name: str, ends: tuple[str, ...], load
) -> None:
    template, used = load(name)
    assert template.ends == ends
    used.eos_token = end_of_turn(template, used)
    used.chat_template = template.text
    size = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(used), **size))
    model.generation_config.eos_token_id = 7
    sync_special_tokens(model, used)
    ids = [used.convert_tokens_to_ids(end) for end in ends]
    assert model.generation_config.eos_token_id == [*ids, 7]
    assert model.config.eos_token_id == used.eos_token_id == ids[0]
