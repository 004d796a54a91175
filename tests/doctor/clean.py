"""Rows without a fault, of every kind: shapes, both modes, many turns, tools, scripts, code, lengths.

Made from numbers, so that no two are alike; one source for each shape, as people have them.
"""

import json
import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
_TOPICS = (
    "rivers",
    "old maps",
    "tea",
    "winter coats",
    "the moon",
    "bread",
    "chess openings",
    "bees",
    "lighthouses",
    "glass",
)
_VERBS = (
    "keeps",
    "moves",
    "changes",
    "shows",
    "hides",
    "needs",
    "makes",
    "loses",
    "finds",
    "outlives",
)
_FOREIGN = (
    "用中文回答：第{n}个问题是什么？今天的天气很好。",  # noqa: RUF001
    "ما هو العدد {n}؟ أجب باختصار من فضلك.",
    "Καλημέρα! Τι είναι το {n}; Ευχαριστώ πολύ.",  # noqa: RUF001
    "Pouvez-vous m'expliquer l'exemple n° {n} ? C'est très « étrange »…",
    "संख्या {n} के बारे में बताइए। नमस्ते!",
    "🙂🚀 number {n} — café, naïve, e\u0301tude, 👩‍👩‍👧",
)
_CODE = (
    "```python\ndef f{n}(x: list[int]) -> dict:\n    # comment\n    return {{i: x[i] < {n} for i in x}}\n```",
    '```html\n<div class="c{n}"><p>{{{{ value }}}}</p><!-- {n} --></div>\n```',
    "```c\n#include <stdio.h>\nint main(void) {{ int a[{n}]; return a[0] << 2 > {n}; }}\n```",
    "```sh\nls docs/thinking.md | grep -E '^[a-z]+' && echo \"$HOME\\t{n}\"\n```",
    "| a | b |\n|---|---|\n| {n} | \\frac{{1}}{{{n}}} |\n\n## Heading {n}\n\n- [x] done",
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def sentence(n: int) -> str:
    return f"Item {n}: {_TOPICS[n % 10]} {_VERBS[n // 10 % 10]} {_TOPICS[n // 100 % 10]}."


def question(n: int) -> str:
    match n % 5:
        case 0:
            return _FOREIGN[n // 5 % len(_FOREIGN)].format(n=n)
        case 1:
            return f"Explain this:\n\n{_CODE[n // 5 % len(_CODE)].format(n=n)}"
        case 2:
            return f"{sentence(n)} Why?"
        case 3:
            return f"  What is {n} + {n % 7}?  \n"
        case _:
            return f"About {n}: {' '.join(sentence(n + i) for i in range(n % 40 + 1))}"


def answer(n: int) -> str:
    match n % 6:
        case 0:
            return "Ok."
        case 1:
            return f"Here:\n\n{_CODE[n // 6 % len(_CODE)].format(n=n)}\n\nThat is all."
        case 2:
            return f"{n}: {_FOREIGN[n // 6 % len(_FOREIGN)].format(n=n)}"
        case 3:
            return " ".join(sentence(n + i) for i in range(n % 60 + 1))
        case 4:
            return f"1. {sentence(n)}\n2. {sentence(n + 1)}\n\n**{n}**"
        case _:
            return f"{n + n % 7}\n"


def trace(n: int) -> str:
    return "\n\n".join(f"Step {i}: {sentence(n + i)} so {n} > {i}." for i in range(n % 30 + 1))


def _turns(n: int, count: int, *, think: bool) -> list[Row]:
    made = []
    for turn in range(count):
        made.append({"role": "user", "content": question(n + 7 * turn)})
        made.append({"role": "assistant", "content": answer(n + 11 * turn)})
        if think:
            made[-1]["reasoning_content"] = trace(n + turn)
    return made


def _messages(n: int) -> Row:
    return {"messages": _turns(n, 1, think=n % 2 == 0)}


def _many_turns(n: int) -> Row:
    return {
        "messages": _turns(n, n % 3 + 2, think=n % 2 == 0),
        "mode": ("think", "no_think")[n % 2],
    }


def _tags(n: int) -> Row:
    said = f"<think>\n{trace(n)}\n</think>\n\n{answer(n)}"
    return {
        "messages": [
            {"role": "user", "content": question(n)},
            {"role": "assistant", "content": said},
        ]
    }


def _flags(n: int) -> Row:
    flag = ("/think", "/no_think")[n % 2]
    system = {"role": "system", "content": f"{sentence(n)} Be brief. {flag}"}
    return {"messages": [system, *_turns(n, 2, think=n % 2 == 0)]}


def _sharegpt(n: int) -> Row:
    said = [{"from": "human", "value": question(n)}, {"from": "gpt", "value": answer(n)}]
    return {
        "conversations": [{"from": "system", "value": f"You know {_TOPICS[n % 10]} {n}."}, *said]
    }


def _alpaca(n: int) -> Row:
    return {
        "instruction": question(n),
        "input": sentence(n + 3) if n % 2 else "",
        "output": answer(n),
    }


def _completion(n: int) -> Row:
    return {"prompt": question(n), "completion": answer(n)}


def _spoken(n: int) -> Row:
    return {
        "prompt": [{"role": "user", "content": question(n)}],
        "completion": [
            {"role": "assistant", "content": f"<think>\n{trace(n)}\n</think>\n{answer(n)}"}
        ],
    }


def _smoltalk(n: int) -> Row:
    think = n % 2 == 0
    kwargs = {
        "custom_instructions": f"You are a guide to {_TOPICS[n % 10]}, number {n}."
        if n % 3
        else None,
        "enable_thinking": think,
        "xml_tools": [json.dumps(_TOOL)] if n % 4 == 0 else None,
        "python_tools": None,
    }
    content = f"<think>\n{trace(n)}\n</think>\n{answer(n)}" if think else answer(n)
    said = [{"role": "user", "content": question(n)}, {"role": "assistant", "content": content}]
    return {"messages": said, "chat_template_kwargs": kwargs, "source": "made"}


def _tools(n: int) -> Row:
    call = {
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": f"C{n}"})},
    }
    said = [
        {"role": "user", "content": f"What is the weather in C{n}? {sentence(n)}"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": json.dumps({"t": n, "sky": "clear"})},
        {"role": "assistant", "content": f"It is {n} degrees."},
    ]
    return {"messages": said, "tools": json.dumps([_TOOL])}


def _pair(n: int) -> Row:
    think = n % 2 == 0
    better, worse = (
        f"<think>\n{trace(n + i)}\n</think>\n\n{sentence(n + i)}" if think else sentence(n + i)
        for i in (0, 1)
    )
    return {"prompt": question(n), "chosen": better, "rejected": worse}


def _spoken_pair(n: int) -> Row:
    asked = {"role": "user", "content": question(n)}
    sides = ([asked, {"role": "assistant", "content": sentence(n + i)}] for i in (0, 1))
    return dict(zip(("chosen", "rejected"), sides, strict=True))


SFT: dict[str, Callable[[int], Row]] = {
    "messages": _messages,
    "many_turns": _many_turns,
    "tags": _tags,
    "flags": _flags,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "spoken": _spoken,
    "smoltalk": _smoltalk,
    "tools": _tools,
}
RATED: dict[str, Callable[[int], Row]] = {
    "rated": lambda n: {**_completion(n), "label": n % 2 == 0},
    "tagged": lambda n: {**_messages(n), "kto_tag": n % 2 == 0},
}
PAIRS: dict[str, Callable[[int], Row]] = {"pairs": _pair, "spoken_pairs": _spoken_pair}


def clean(
    kinds: dict[str, Callable[[int], Row]], count: int, seed: int = 0
) -> dict[str, list[Row]]:
    """`count` rows in all, of every kind in turn."""
    start = random.Random(seed).randrange(100, 1000)
    each = count // len(kinds)
    return {
        name: [make(start + number * 10_000 + i) for i in range(each)]
        for number, (name, make) in enumerate(kinds.items())
    }
