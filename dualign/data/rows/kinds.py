"""Rows that a stage can't train on, by what they are: pairs, rated answers, problems without answers.

Such a row has no fault of its own. It is told which stage takes it, instead of what it lacks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dualign.data.conversation import Message
from dualign.data.faults import Code, RowFault
from dualign.data.rows.contents import check_media
from dualign.data.rows.shapes import Part, Row, RowShape, expected_shapes, shape_of
from dualign.errors import excerpt, listing

_QUESTIONS = ("prompt", "question", "query", "problem", "instruction", "input")
TRUTHS = (
    "ground_truth",
    "reward_model",
    "expected_answer",
    "verification_info",
    "test_cases",
    "tests",
    "gold_standard_solution",
)
"""Columns of what an answer is checked against; nobody answers like that."""
ANSWERS = ("answer", "solution", "target", "final_answer")
"""Columns that hold an answer in some sets, and in others what it is checked against."""
RATINGS = (
    *("score", "reward", "rating", "rank", "helpfulness", "correctness", "correct", "is_correct"),
    *("is_right", "passed", "quality", "grade", "stars", "votes", "upvotes"),
)
"""Columns that say how good an answer is: such a set holds bad ones too."""
_BESIDE_A_QUESTION = frozenset(
    [
        *("system", "tools", "mode", "chat_template_kwargs", "id", "index", "uuid", "source"),
        *("data_source", "dataset", "category", "subject", "topic", "domain", "type", "level"),
        *("difficulty", "language", "tags", "metadata", "split", "extra_info"),
    ]
)
LABELS = ("label", "kto_tag")
"""Columns with the verdict on an answer, as KTO sets have it."""
_GOOD = ("true", "1", "good", "chosen", "desirable")
_BAD = ("false", "0", "-1", "bad", "rejected", "undesirable")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowKind:
    """`fits` recognizes a row by the columns that it fills; `use` says what takes such rows."""

    name: str
    fits: Callable[[frozenset[str]], bool]
    use: str
    code: Code = "wrong_stage"


_PROBLEM = RowKind(
    name="a problem with what its answer is checked against, as for RL",
    fits=lambda names: (
        any(name in names for name in _QUESTIONS)
        and any(name in names for name in (*TRUTHS, *ANSWERS))
    ),
    use="It has no answer to learn: name the file in a task (prompt, answer), which `pairs` and `eval` stages take. "
    "If a column is the answer, say so with `columns: {prompt: ..., completion: ...}`; a `traces` stage lets a "
    "model think about such rows",
)
_RATED: tuple[RowKind, ...] = (
    RowKind(
        name="a step of a message tree (OpenAssistant)",
        fits=lambda names: {"message_id", "role", "text"} <= names,
        use="Join each path from a root to a leaf to one row with `messages` first",
    ),
    RowKind(
        name="an answer whose steps are rated, as for a reward model",
        fits=lambda names: "labels" in names and bool(names & {"completions", "steps"}),
        use="No stage trains on rated steps; `pairs` makes pairs of right and wrong answers",
    ),
    RowKind(
        name="an answer with its rating",
        code="unknown_shape",
        fits=lambda names: (
            any(name in names for name in _QUESTIONS)
            and bool(names & {"response", "answer", "output", "completion"})
            and bool(names & set(RATINGS))
        ),
        use="Its good and bad answers would be learned alike: keep the good ones in a file for an sft "
        "stage, with `columns: {prompt: ..., completion: ...}`; two answers to one prompt, the better "
        "one as `chosen`, are for a preference stage, and `pairs` samples them from a model",
    ),
    RowKind(
        name="one answer with a verdict (KTO)",
        fits=lambda names: (
            bool(names & set(LABELS))
            and bool(names & {"completion", "messages", "conversations", "output", "response"})
        ),
        use="A preference stage with loss_type kto or apo_zero_unpaired takes it; other losses, and `pairs` of an "
        "eval stage, need two answers to one prompt, `chosen` and `rejected`; an sft stage learns the answers whose "
        "verdict is good",
    ),
)
_UNANSWERED: tuple[RowKind, ...] = (
    RowKind(
        name="several answers to one prompt",
        fits=lambda names: (
            any(name in names for name in _QUESTIONS)
            and bool(names & {"completions", "responses", "answers", "generations"})
        ),
        use="Keep one answer for an sft stage, such as `columns: {completion: responses.0}`, or two "
        "for a preference stage (`chosen`, `rejected`)",
    ),
    _PROBLEM,
    RowKind(
        name="a question alone",
        code="unknown_shape",
        fits=lambda names: (
            any(name in names for name in _QUESTIONS)
            and names <= {*_QUESTIONS, *_BESIDE_A_QUESTION}
        ),
        use="It has no answer to learn: a `pairs` stage samples answers to it with a task that checks "
        "them, and a `script` stage may write some",
    ),
)


def misplaced_row(row: Row, *, pairs: bool) -> RowFault:
    """Return the fault of a row that has none of the stage's shapes: what it is, if that is known."""
    try:
        check_media(row, "the row")
    except RowFault as fault:
        return fault
    names = frozenset(name for name, value in row.items() if value is not None)
    other = shape_of(row, pairs=not pairs)
    kinds = _UNANSWERED if other is None or other.verbatim else (_other_stage(other),)
    kind = next((kind for kind in (*_RATED, *kinds) if kind.fits(names)), None)
    if kind is not None:
        return RowFault(kind.code, f"the row ({_listed(names)}) is {kind.name}. {kind.use}")
    return RowFault(
        "unknown_shape",
        f"a row with keys {_listed(names) or '(none)'}. Expected {expected_shapes(pairs=pairs)}",
    )


def _other_stage(shape: RowShape) -> RowKind:
    """Return the kind of rows that have a shape of the other training stage."""
    what, use = (
        ("a preference pair", "A preference stage takes it, with a loss of pairs such as apo_zero")
        if shape.is_pair
        else ("a conversation", "An sft stage takes it")
    )
    return RowKind(name=f"{what} ({shape.name})", fits=lambda names: True, use=use)


def verdict_of(row: Row) -> bool:
    """Return whether a rated answer is a good one, by its `label` or `kto_tag`.

    Raises:
        RowFault: it has neither, one that is neither true nor false, or two that differ.
    """
    labels = {name: row[name] for name in LABELS if row.get(name) is not None}
    expected = "expected label: true for a good answer, false for a bad one"
    if not labels:
        raise RowFault(
            "bad_label",
            f"the row has no label: {expected} (or kto_tag; another column by `columns: {{label: NAME}}`). An answer "
            "without a verdict is for an sft stage",
        )
    verdicts = {name: _verdict(value) for name, value in labels.items()}
    for name, verdict in verdicts.items():
        if verdict is None:
            raise RowFault(
                "bad_label",
                f"{name} is {excerpt(labels[name])}: {expected}. Other values are mapped by "
                f"`columns: {{label: {{from: {name}, good: [...], bad: [...]}}}}`",
            )
    if len(set(verdicts.values())) > 1:
        raise RowFault(
            "bad_label", f"label and kto_tag differ ({labels}): {expected}, in one column"
        )
    return bool(next(iter(verdicts.values())))


def _verdict(value: object) -> bool | None:
    """Read a label; None if it is none. 1.0 is how a table with empty cells has 1."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    text = text.strip().lower()
    return True if text in _GOOD else False if text in _BAD else None


def check_verdict(row: Row) -> None:
    """Raise RowFault for a row whose own label says that its answer is a bad one (KTO)."""
    for name in LABELS:
        if _verdict(row.get(name)) is False:
            raise RowFault(
                "bad_answer",
                f"{name} is {excerpt(row[name])}: a rated answer (KTO), and this one is bad. Leave those out "
                "with on_fault {bad_answer: drop}, or give good and bad ones to a preference stage with "
                "loss_type: kto",
            )


def check_answered(row: Row, messages: Part) -> None:
    """Raise RowFault for a conversation that ends with a question and holds only what its answer is
    checked against.
    """
    last: Message | None = messages[-1] if messages else None
    if last is None or last.role != "user":
        return
    unanswered = not any(message.role == "assistant" for message in messages)
    truths = (*TRUTHS, *ANSWERS) if unanswered else TRUTHS
    if all(row.get(name) is None for name in truths):
        return
    raise RowFault("wrong_stage", f"the row is {_PROBLEM.name}. {_PROBLEM.use}")


def _listed(names: frozenset[str]) -> str:
    return listing(sorted(names))
