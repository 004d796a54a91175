"""A task of lm-evaluation-harness as one of ours: its rows as problems, and its metrics."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from dualign.errors import DataError, EvaluationError, excerpt
from dualign.intervals import Z_95
from dualign.switch import Switch
from dualign.tasks.base import Continuation, OwnSampling, Problem, Turn
from dualign.tasks.lm_eval_check import LmEvalCheck, Target, aggregation_of, has_mean, plain
from dualign.verifiers.base import Verdict

UNSAFE = (
    "it runs code that a model wrote in this process, where nothing shuts it in (unsafe_code). Write its "
    "rows as a task file with the verifier unit_tests, which runs code in a sandbox (docs/verifiers.md)"
)
_FEWSHOT_SEED = 1234  # lm-eval's default
_MAX_GEN_TOKS = 256  # of a task that names none, as of lm-eval's `hf` model
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class _Rendered(str):
    """What stands for a rendered prompt while lm-eval builds its requests."""

    __slots__ = ("begun", "messages")
    messages: tuple[Turn, ...]
    begun: str


def _render(messages: Sequence[Turn], add_generation_prompt: bool = True) -> _Rendered:
    """Take the place of a chat template: keep the messages, and what begins the answer."""
    rendered = _Rendered(json.dumps(list(messages), ensure_ascii=False))
    turns = tuple(dict(turn) for turn in messages)
    rendered.begun = "" if add_generation_prompt else str(turns[-1]["content"])
    rendered.messages = turns if add_generation_prompt else turns[:-1]
    return rendered


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LmEvalTask:
    """A task, or a group that lm-eval aggregates: the rows of its members one after the other."""

    name: str
    reference: str
    """as a recipe has it, without the prefix"""
    members: tuple[Any, ...]
    """lm-eval's task objects"""
    group: Any = None
    """lm-eval's group object"""
    bare: bool = False
    """with the last turn of each question alone"""
    max_new_tokens: int | None = None
    switch: Switch | None = None

    @property
    def rows(self) -> str:
        return f"lm_eval:{self.reference}"

    @property
    def max_new_tokens_no_think(self) -> int | None:
        limits = [_sampling(member).max_new_tokens for member in self.members if _writes(member)]
        return max(limits, default=None)

    @property
    def writes(self) -> bool:
        return all(map(_writes, self.members))

    @property
    def has_accuracy(self) -> bool:
        return all(map(has_mean, self.members))

    @property
    def check(self) -> LmEvalCheck:
        return LmEvalCheck()

    @property
    def digest(self) -> str | None:
        docs = [[dict(doc) for doc in member.eval_docs] for member in self.members]
        content = json.dumps([self.settings(), docs], default=_as_text)
        return sha256(content.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        configs = {member.task_name: member.dump_config() for member in self.members}
        for config in configs.values():  # where its file lies doesn't count
            config["metadata"] = {**config.get("metadata", {}), "config_source": None}
        plain_configs = json.loads(json.dumps(configs, default=_as_text))
        return {**self.harness(), "bare": self.bare, "configs": plain_configs}

    def without_instruction(self) -> "LmEvalTask":
        return replace(self, bare=True)

    def harness(self) -> dict[str, Any]:
        versions = [member.VERSION for member in self.members]
        shots = sorted({int(member.get_config("num_fewshot") or 0) for member in self.members})
        return {
            "harness": "lm-eval",
            "version": version("lm-eval"),
            "task_version": plain(versions[0] if self.group is None else self.group.version),
            "num_fewshot": shots[0] if len(shots) == 1 else shots,
            "dataset": _dataset(self.members),
        }

    def require(self) -> None:
        """Refuse what can't be asked or checked here.

        Raises:
            EvaluationError: the task runs code that a model wrote, or shows pictures.
        """
        for member in self.members:
            if getattr(member, "UNSAFE_CODE", False):
                raise EvaluationError(f"{self.rows}: {member.task_name}: {UNSAFE}")
            if getattr(member, "MULTIMODAL", False):
                raise EvaluationError(
                    f"{self.rows}: {member.task_name} asks about pictures or sounds; expected text"
                )

    def load_problems(self) -> tuple[Problem, ...]:
        problems = tuple(
            problem
            for member in self.members
            for problem in _problems(member, f"{self.rows} ({member.task_name})")
        )
        if self.group is not None:
            problems = tuple(
                replace(problem, id=f"{problem.expected.task.task_name}/{problem.id}", line=line)
                for line, problem in enumerate(problems, 1)
            )
        return tuple(map(_last_turn, problems)) if self.bare else problems

    def judge_responses(
        self, problem: Problem, responses: Sequence[Sequence[Any]], *, cut: bool = False
    ) -> Verdict:
        try:
            return self.check.judge_responses(responses, problem.expected, cut=cut)
        except DataError as error:
            raise EvaluationError(f"{self.rows}:{problem.line}: {error}") from None

    def metrics(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        by_task = {
            member.task_name: _aggregated(member, self._values_of(member, samples))
            for member in self.members
        }
        if self.group is None:
            return _figures(by_task[self.members[0].task_name])
        figures = _figures(self.group.aggregate(by_task))
        for name, values in by_task.items():
            figures |= {f"{name}:{key}": figure for key, figure in _figures(values).items()}
        return figures

    def _values_of(
        self, member: Any, samples: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        if self.group is None:
            return [sample["scores"] for sample in samples]
        head = f"{member.task_name}/"
        return [sample["scores"] for sample in samples if sample["id"].startswith(head)]


def _dataset(members: Sequence[Any]) -> dict[str, Any]:
    """Return path, config and split of the data set, each None where members differ."""
    keys = ("dataset_path", "dataset_name", "test_split", "validation_split")
    values = {key: {member.get_config(key) for member in members} for key in keys}
    path, config, test, validation = (
        next(iter(values[key])) if len(values[key]) == 1 else None for key in keys
    )
    return {"path": path, "config": config, "split": test or validation}


def _as_text(value: Any) -> str:
    """Return what JSON doesn't know as text; of a function its code, since its address changes."""
    if not callable(value):
        return str(value)
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__name__)}"


def _writes(member: Any) -> bool:
    return bool(member.OUTPUT_TYPE == "generate_until")


def _sampling(member: Any) -> OwnSampling:
    """Return how a task samples, by its generation_kwargs as lm-eval's `hf` model reads them."""
    kwargs = member.get_config("generation_kwargs") or {}
    limits = [kwargs[name] for name in _LIMITS if kwargs.get(name) is not None]
    stop = kwargs.get("until") or ()
    temperature = float(kwargs.get("temperature", 0.0))
    is_sampled = kwargs.get("do_sample", temperature > 0)
    return OwnSampling(
        max_new_tokens=int(next(iter(limits), _MAX_GEN_TOKS)),
        temperature=temperature if is_sampled else 0.0,
        top_p=float(kwargs.get("top_p", 1.0)) if is_sampled and temperature else 1.0,
        stop=tuple(filter(None, (stop,) if isinstance(stop, str) else stop)),
        repeats=int(member.get_config("repeats") or 1),
    )


def _problems(member: Any, where: str) -> Iterator[Problem]:
    """Yield the rows of one of lm-eval's tasks."""
    shots = int(member.get_config("num_fewshot") or 0)
    member.set_fewshot_seed(_FEWSHOT_SEED)
    for number, doc in enumerate(member.eval_docs):
        try:
            requests = _requests(member, doc, number, shots)
            yield _problem(member, doc, number, requests)
        except EvaluationError as error:
            raise EvaluationError(f"{where}, row {number}: {error}") from None
        except Exception as error:  # code of tasks can raise anything
            raise EvaluationError(
                f"{where}, row {number}: lm-eval can't ask it ({type(error).__name__}: "
                f"{excerpt(str(error))})"
            ) from error


def _requests(member: Any, doc: Any, number: int, shots: int) -> list[Any]:
    """Return lm-eval's requests of a row, with messages in place of rendered prompts."""
    context = member.fewshot_context(
        doc=doc,
        num_fewshot=shots,
        system_instruction=None,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=_render,
        gen_prefix=member.doc_to_prefix(doc),
    )
    requests = member.construct_requests(
        doc=doc,
        ctx=context,
        metadata=(member.task_name, number, member.get_config("repeats")),
        apply_chat_template=True,
        chat_template=_render,
    )
    requests = list(requests) if isinstance(requests, list | tuple) else [requests]
    return sorted(requests, key=lambda request: request.idx)


def _problem(member: Any, doc: Any, number: int, requests: list[Any]) -> Problem:
    kinds = {request.request_type for request in requests}
    target = Target(_in_words(member, doc))
    target.task, target.doc, target.instances, target.stop = member, doc, tuple(requests), ()
    if kinds == {"generate_until"} and len(requests) == 1:
        rendered = _rendered(requests[0].args[0])
        sampling = _sampling(member)
        target.stop = sampling.stop
        asked: dict[str, Any] = {"sampling": sampling, "choices": ()}
    elif kinds <= {"loglikelihood", "loglikelihood_rolling"}:
        rendered, choices = _choices(requests)
        asked = {"choices": choices}
    else:
        raise EvaluationError(
            f"a row makes {len(requests)} requests of the kinds {', '.join(sorted(kinds))}; expected one "
            "answer, or texts to be scored"
        )
    return Problem(
        id=str(number),
        messages=rendered.messages,
        expected=target,
        extra={},
        line=number + 1,
        begun=rendered.begun,
        **asked,
    )


def _choices(requests: Sequence[Any]) -> tuple[_Rendered, tuple[Continuation, ...]]:
    """Return the prompt of the first text, and all texts with theirs."""
    first, choices = None, []
    for request in requests:
        *contexts, text = request.args[:2]
        if not contexts:
            choices.append(Continuation(text=text, messages=None))
        elif contexts[0] == "":
            choices.append(Continuation(text=text, messages=()))
        else:
            rendered = _rendered(contexts[0])
            first = first or rendered
            if rendered.begun != first.begun:
                raise EvaluationError("its texts follow different beginnings; expected one")
            choices.append(Continuation(text=text, messages=rendered.messages))
    return first or _render([{"role": "user", "content": choices[0].text}]), tuple(choices)


def _rendered(context: Any) -> _Rendered:
    if not isinstance(context, _Rendered):
        raise EvaluationError(
            f"its code writes a prompt of its own ({excerpt(str(context))}), which no chat template "
            "renders; expected messages"
        )
    return context


def _in_words(member: Any, doc: Any) -> str:
    """Return what is expected, as text; of a choice, its text."""
    target = member.doc_to_target(doc)
    if isinstance(target, int) and member.get_config("doc_to_choice") is not None:
        choices = member.doc_to_choice(doc)
        return str(choices[target]) if 0 <= target < len(choices) else str(target)
    return target if isinstance(target, str) else json.dumps(target, default=str)


def _last_turn(problem: Problem) -> Problem:
    return replace(problem, messages=problem.messages[-1:])


def _aggregated(member: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return lm-eval's metrics of a task from the values of its rows, in lm-eval's form."""
    from lm_eval.api.metrics import stderr_for_metric

    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    metrics: dict[str, Any] = {"sample_len": max(map(len, values.values()), default=0)}
    for name, items in values.items():
        aggregation = aggregation_of(member, name)
        metric, _, key = name.rpartition(",")
        metrics[name] = plain(aggregation(items))
        # Bootstrapped errors, of f1 and the like, take 100,000 draws in many processes.
        error = stderr_for_metric(aggregation, 1) if _is_closed_form(aggregation) else None
        metrics[f"{metric}_stderr,{key}"] = (
            plain(error(items)) if error is not None and len(items) > 1 else "N/A"
        )
    return metrics


def _is_closed_form(aggregation: Any) -> bool:
    from lm_eval.api.metrics import acc_all, mean

    return aggregation in (mean, acc_all)


def _figures(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return metrics in lm-eval's form as value, standard error and 95 % interval."""
    figures = {}
    for name, value in metrics.items():
        metric, comma, key = name.rpartition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = metrics.get(f"{metric}_stderr,{key}")
        stderr = error if isinstance(error, int | float) else None
        margin = None if stderr is None else Z_95 * stderr
        figures[name] = {
            "value": value,
            "stderr": stderr,
            "ci": None if margin is None else [value - margin, value + margin],
        }
    return figures
