"""What an evaluation stage is asked for. Nothing heavy is imported: recipes load from here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backend = Literal["transformers", "vllm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 samples"""
    top_p: float = 1.0
    """sample from the likeliest tokens that together have this probability"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSettings:
    """Which tasks are put to a model, and how it answers them."""

    tasks: tuple[str, ...]
    """task files"""
    rows: int | None = None
    """at most so many rows of each task, drawn by the seed; absent: all"""
    max_new_tokens: int = 512
    """limit of an answer in think mode, its thinking included"""
    max_new_tokens_no_think: int | None = None
    """limit of an answer in no_think mode; absent: max_new_tokens"""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 samples"""
    top_p: float = 1.0
    """sample from the likeliest tokens that together have this probability"""
    batch_tokens: int = 32768
    """tokens that are in memory at once: rows of a batch times (longest prompt + limit)"""
    backend: Backend = "transformers"
    """what generates; vllm has to be installed"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the weights; auto: as saved on an accelerator, float32 on a CPU"""

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    def problems(self) -> list[tuple[str, str]]:
        found = [] if self.tasks else [("tasks", "expected one or more, found none")]
        found += [
            (key, f"expected 1 or more, found {value}")
            for key, value in (
                ("rows", self.rows),
                ("max_new_tokens", self.max_new_tokens),
                ("max_new_tokens_no_think", self.max_new_tokens_no_think),
                ("batch_tokens", self.batch_tokens),
            )
            if value is not None and value < 1
        ]
        if self.temperature < 0:
            found.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        if not 0 < self.top_p <= 1:
            found.append(("top_p", f"expected more than 0 and at most 1, found {self.top_p}"))
        if self.temperature == 0 and self.top_p < 1:
            found.append(
                (
                    "top_p",
                    f"{self.top_p} has no effect at temperature 0; set temperature or leave out top_p",
                )
            )
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalStage(EvalSettings):
    """Models and tasks; every task is put to every model in think and in no_think mode."""

    name: str
    """the stage's name, and that of its folder"""
    kind: Literal["eval"] = "eval"
    """this stage"""
    models: tuple[str, ...]
    """run directories, model or adapter folders, hub ids; the last one is the result"""
    pairs: tuple[str, ...] = ()
    """files of preference pairs: how often, and by how much, each model finds the chosen answer likelier"""

    def problems(self) -> list[tuple[str, str]]:
        found = [] if self.models else [("models", "expected one or more, found none")]
        if len(set(self.models)) < len(self.models):
            found.append(("models", "names a model twice"))
        if len({Path(file).stem for file in self.pairs}) < len(self.pairs):
            found.append(("pairs", "two files of one name would be one line in every table"))
        return found + EvalSettings.problems(self)
