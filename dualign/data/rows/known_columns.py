"""Names of public sets that are read without a mapping, if only one reading is possible.

Where several are possible, or none by name, `guessed_columns` is what to try: it is shown, never
trained on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import datasets

from dualign.data.columns import paths_of
from dualign.data.conversation import RowType
from dualign.data.rows.contents import MEDIA_KEYS
from dualign.data.rows.kinds import ANSWERS, LABELS, RATINGS, TRUTHS
from dualign.data.rows.messages import ROLES
from dualign.data.rows.shapes import PROMPTS, shapes_of

Samples = Mapping[str, Any]
"""A value of each column that has one: the first; of texts the longest of the first rows."""
Columns = Mapping[str, Any]
_Names = tuple[str, ...]
_PROMPTS: _Names = ("prompt", "question", "query", "problem", "instruction", "input", "human")
_PROMPTS += ("user", "inputs", "user_prompt", "user_input")
_COMPLETIONS: _Names = ("completion", "response", "output", "assistant", "targets", "gpt", "bot")
_COMPLETIONS += ("generated_solution", "model_response", "assistant_response")
_TRACES: _Names = ("thinking", "reasoning_content", "complex_cot", "cot", "chain_of_thought")
_TRACES += ("thought", "thoughts", "reasoning", "reasoning_trace", "rationale")
_CONTEXTS: _Names = ("context", "input", "passage")
_SEVERAL: _Names = ("generations", "responses", "completions", "answers", "outputs")
_SYSTEMS: _Names = ("system_prompt", "system_instruction", "system_message")
_TURNS: _Names = ("messages", "conversations", "conversation", "dialog", "dialogue", "dialogues")
_TURNS += ("turns", "chat", "data")
_ROLE_KEYS: _Names = ("role", "from", "speaker", "author")
_CONTENT_KEYS: _Names = ("content", "value", "text", "message", "utterance")
_SPEAKERS: Mapping[str, _Names] = {
    "user": ("human", "user", "question", "instruction", "input"),
    "assistant": ("assistant", "gpt", "bot", "answer", "output", "response"),
}
_CHOSEN_REJECTED = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_answer", "rejected_answer"),
    ("response_chosen", "response_rejected"),
    ("answer_chosen", "answer_rejected"),
    ("response_j", "response_k"),
    ("preferred", "dispreferred"),
)
_OF_QUESTION: _Names = ("choices", "options", "candidates", "contexts", "passages", "documents")
_OF_QUESTION += ("document", "article", "paragraph", "table", "schema", "code", "image", "images")
"""Columns that a question can't be answered without."""
_OF_TRACE = ("think", "reason", "cot", "trajector", "rationale")
"""Parts of the names of columns with traces."""
_WORDS_OF_TRACE = 3
"""A trace under a name that isn't a usual one has more; `reason_code: 12` is none."""
_SWITCHES = frozenset(
    [
        "on",
        "off",
        "true",
        "false",
        "yes",
        "no",
        "none",
        "auto",
        "low",
        "medium",
        "high",
        "enabled",
        "disabled",
        "0",
        "1",
    ]
)
"""Values of a column such as `reasoning` that is a switch, not a trace."""
_FEWEST_TURNS = 2
_LOOKED_AT = 100
_BATCH = 10_000


def samples_of(table: datasets.Dataset) -> Samples:
    """Return the first value of each column that has one; of texts the longest of the first rows,
    since a trace may be short in one row.
    """
    samples: dict[str, Any] = {}
    for row in islice(table, _LOOKED_AT):
        for name, value in row.items():
            sample = samples.get(name)
            longer = isinstance(value, str) and isinstance(sample, str) and len(value) > len(sample)
            if value is not None and (sample is None or longer):
                samples[name] = value
    for name in table.column_names:
        if name not in samples and (row := _first_filled(table, name)) is not None:
            samples[name] = table[row][name]
    return samples


def _first_filled(table: datasets.Dataset, name: str) -> int | None:
    batches = table.select_columns([name]).with_format("arrow").iter(batch_size=_BATCH)
    for number, batch in enumerate(batches):
        filled = batch.column(name).is_valid().to_numpy()
        if filled.any():
            return number * _BATCH + int(filled.argmax())
    return None


def known_columns(samples: Samples, *, pairs: bool, verbatim: bool = False) -> Columns:
    """Return the only mapping that these columns allow; an empty one if the rows need none, or if
    there isn't exactly one. `verbatim`: rows may be plain text.
    """
    if _has_shape(samples, pairs=pairs, verbatim=verbatim):
        return _names_in_messages(samples, pairs=pairs)
    readings = list(_pair_readings(samples) if pairs else _readings(samples))
    return readings[0] if len(readings) == 1 and not _is_unsure(samples, readings[0]) else {}


def guessed_columns(samples: Samples, *, pairs: bool) -> Columns:
    """Return a mapping to try: by names, else by the lengths of texts; empty if there is none, or if
    what the rows hold beside it would be lost: ratings, images.
    """
    lower = {name.lower() for name in samples}
    if not pairs and lower & {*RATINGS, *MEDIA_KEYS}:
        return {}
    readings = list(_pair_readings(samples) if pairs else _readings(samples))
    if readings:
        return max(
            readings, key=lambda reading: len(str(samples.get(reading.get("completion", ""))))
        )
    several = _present(samples, _SEVERAL)
    if several and not pairs and (questions := _questions(samples)):
        return {"prompt": questions[0], "completion": f"{several[0]}.0"}
    texts = [name for name, value in samples.items() if isinstance(value, str)]
    texts = [name for name in texts if len(str(samples[name]).split()) > 1]
    if pairs:
        names = ("prompt", "chosen", "rejected")
        return dict(zip(names, texts, strict=False)) if len(texts) >= len(names) else {}
    turns = [reading for name in samples if (reading := _guessed_turns(name, samples[name]))]
    if turns:
        return turns[0]
    traces = [
        name for name in texts if name.lower() in _TRACES or _may_be_trace(name, samples[name])
    ]
    spoken = [name for name in texts if name not in traces]
    if len(spoken) > 1:
        thinking = {"thinking": traces[0]} if len(traces) == 1 else {}
        return {"prompt": spoken[0], **thinking, "completion": spoken[-1]}
    return next(filter(None, map(_guessed_object, samples, samples.values())), {})


def _guessed_turns(path: str, value: Any) -> Columns:
    """Return the reading of a list of messages, or of one in an object: by known names, or else two
    speakers in turn, of whom the first asks.
    """
    if isinstance(value, Mapping):
        inner = (_guessed_turns(f"{path}.{key}", item) for key, item in value.items())
        return next(filter(None, inner), {})
    names = _turn_names(value)
    if names is not None:
        return (
            {}
            if isinstance(value, str) or isinstance(value[0], str)
            else {"messages": path, **names}
        )
    items = value if isinstance(value, list) else []
    if len(items) < _FEWEST_TURNS or not all(isinstance(item, Mapping) for item in items):
        return {}
    texts = {
        key: [item[key] for item in items]
        for key in items[0]
        if all(isinstance(item.get(key), str) for item in items)
    }
    keys = sorted(texts, key=lambda key: (_sorts_as(key), sum(map(len, texts[key]))))
    speakers = list(dict.fromkeys(texts[keys[0]])) if len(keys) > 1 else []
    if len(speakers) != _FEWEST_TURNS or any(" " in speaker for speaker in speakers):
        return {}
    role = {"from": keys[0], "user": [speakers[0]], "assistant": [speakers[1]]}
    return {"messages": path, "role": role, "content": keys[-1]}


def _sorts_as(key: str) -> int:
    """Sort the keys of a message by their names: speakers first, texts last."""
    return (key.lower() in _CONTENT_KEYS) - (key.lower() in (*_ROLE_KEYS, "who", "name", "user"))


def _guessed_object(name: str, value: Any) -> Columns:
    """Return the reading of a row that is an object in a column, with plain paths."""
    inner = guessed_columns(value, pairs=False) if isinstance(value, Mapping) else {}
    plain = all(isinstance(path, str) and "{" not in path for path in inner.values())
    return {ours: f"{name}.{path}" for ours, path in inner.items()} if plain else {}


def _has_shape(samples: Samples, *, pairs: bool, verbatim: bool = False) -> bool:
    """Return whether the columns are those of a known shape, a pair's prompt included."""
    shapes = [shape for shape in shapes_of(pairs=pairs) if verbatim or not shape.verbatim]
    shape = next((shape for shape in shapes if shape.fits(samples)), None)
    if shape is None or not pairs:
        return shape is not None
    alone = isinstance(samples["rejected"], str) and not _is_transcript(samples["rejected"])
    return not alone or any(samples.get(name) for name in (*PROMPTS, "instruction"))


def row_type_of(samples: Samples) -> RowType:
    """Return what rows with these columns are: pairs, rated answers (a label that is true or false), or
    conversations.
    """
    fits = any(shape.fits(samples) for shape in shapes_of(pairs=True))
    if fits or known_columns(samples, pairs=True):
        return "pair"
    rated = any(isinstance(samples.get(name), bool) for name in LABELS)
    return "rated" if rated else "conversation"


def _is_transcript(text: str) -> bool:
    return "Human:" in text and "Assistant:" in text


def _is_unsure(samples: Samples, reading: Columns) -> bool:
    """Return whether the answers may be bad ones, what an answer is checked against, or lack what
    belongs to them or to their questions.
    """
    if "completion" not in reading:
        return False
    names = {name.lower() for name in samples}
    if names & {*RATINGS, *_OF_QUESTION}:
        return True
    used = {path for spec in reading.values() for path in paths_of(spec)}
    others = [name for name in samples if name not in used]
    if any(name.lower() in _CONTEXTS or _may_be_trace(name, samples[name]) for name in others):
        return True
    prompt, completion = str(reading["prompt"]).lower(), str(reading["completion"]).lower()
    checked = completion in ANSWERS and bool(names & set(TRUTHS))
    return checked or (prompt, completion) in _AMBIGUOUS


def _may_be_trace(name: str, value: Any) -> bool:
    text = value if isinstance(value, str) else str(value)
    return len(text.split()) > _WORDS_OF_TRACE and any(part in name.lower() for part in _OF_TRACE)


_AMBIGUOUS = (("prompt", "answer"), ("prompt", "solution"), ("problem", "answer"))
"""Sets for RL have these columns, with the number that the answer is checked against."""


def _readings(samples: Samples) -> Iterator[Columns]:
    """Yield the ways in which the columns may be a conversation."""
    turns = [
        reading for name in _present(samples, _TURNS) for reading in _turns(name, samples[name])
    ]
    if turns:
        yield from turns
        return
    side = _side(samples)
    answers = [name for name in _present(samples, _COMPLETIONS) if _is_text(samples[name])]
    weak = [name for name in _present(samples, ANSWERS) if isinstance(samples[name], str)]
    for prompt in _questions(samples):
        for answer in (*answers, *weak):
            yield {"prompt": prompt, **side, "completion": answer}


def _questions(samples: Samples) -> list[str]:
    """Return the columns that may be the question, each with the context that belongs to it."""
    prompts = [name for name in _present(samples, _PROMPTS) if _is_text(samples[name])]
    if len(prompts) > 1:
        prompts = [name for name in prompts if name.lower() != "input"]
    contexts = [name for name in _present(samples, _CONTEXTS) if isinstance(samples[name], str)]
    contexts = [name for name in contexts if name not in prompts]
    if len(contexts) == 1 and all(isinstance(samples[name], str) for name in prompts):
        return [f"{{{name}}}\n\n{{{contexts[0]}}}" for name in prompts]
    return prompts if not contexts else []


def _is_text(value: Any) -> bool:
    """Return whether a value is text, or messages with our names."""
    if isinstance(value, str):
        return True
    return isinstance(value, list) and _turn_names(value) == {} and isinstance(value[0], Mapping)


def _side(samples: Samples) -> dict[str, str]:
    """Return the columns of a trace and of a system text, where there is one of them."""
    traces = [
        name
        for name in _present(samples, _TRACES)
        if isinstance(samples[name], str) and samples[name].strip().lower() not in _SWITCHES
    ]
    systems = [name for name in _present(samples, _SYSTEMS) if isinstance(samples[name], str)]
    side = {"thinking": traces[0]} if len(traces) == 1 else {}
    return side | (
        {"system": systems[0]} if len(systems) == 1 and not samples.get("system") else {}
    )


def _pair_readings(samples: Samples) -> Iterator[Columns]:
    lower = {name.lower(): name for name in samples}
    turns = [name for name in _present(samples, _TURNS) if _turn_names(samples[name]) == {}]
    for chosen, rejected in _CHOSEN_REJECTED:
        if rejected not in lower:
            continue
        answers = {"rejected": lower[rejected]}
        if chosen in lower:
            answers = {"chosen": lower[chosen]} | answers
        elif "messages" not in samples:
            continue
        if "chosen" not in answers or not isinstance(samples[lower[rejected]], str):
            yield answers
            continue
        yield from ({"prompt": prompt} | answers for prompt in _questions(samples))
        yield from ({"messages": column} | answers for column in turns)


def _turns(path: str, value: Any) -> Iterator[Columns]:
    """Yield the readings of a column as a conversation, itself or a list inside of it."""
    names = _turn_names(value)
    if names is not None:
        yield {"messages": path} | names
    elif isinstance(value, Mapping):
        for key in _present(value, _TURNS):
            yield from _turns(f"{path}.{key}", value[key])


def _turn_names(value: Any) -> dict[str, str] | None:
    """Return the names of a message's fields that aren't ours; None for what is no conversation."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        return None
    if all(isinstance(item, str) for item in value):
        return {} if len(value) > 1 else None
    if not all(isinstance(item, Mapping) for item in value):
        return None
    return _field_names(value[0])


def _field_names(message: Mapping[str, Any]) -> dict[str, str] | None:
    message = {name: value for name, value in message.items() if value is not None}
    roles = _present(message, _ROLE_KEYS)
    contents = _present(message, _CONTENT_KEYS)
    if len(roles) == 1 and len(contents) == 1:
        if str(message[roles[0]]).lower() not in ROLES:
            return None
        ours = (roles[0], contents[0]) in (("role", "content"), ("from", "value"))
        return {} if ours else {"role": roles[0], "content": contents[0]}
    speakers = {ours: _present(message, names) for ours, names in _SPEAKERS.items()}
    if not roles and all(len(names) == 1 for names in speakers.values()):
        return {ours: names[0] for ours, names in speakers.items()}
    return None


def _names_in_messages(samples: Samples, *, pairs: bool) -> Columns:
    """Return the mapping of a conversation that has our column, and other names in its messages."""
    for name in () if pairs else ("messages", "conversations"):
        if samples.get(name) is not None:
            value = samples[name]
            names = _turn_names(value)
            plain = isinstance(value, list) and isinstance(value[0], str) if value else False
            return {"messages": name} | names if names or (names is not None and plain) else {}
    return {}


def _present(columns: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the columns that have one of these names, whatever their case."""
    return [name for known in names for name in columns if str(name).lower() == known]
