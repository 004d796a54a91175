"""Ten rows of each public kind of set, in its published form: the columns of its card, our texts.

Each entry: the rows, the stage that they are given to, and what becomes of them: `in` (all ten rows
are trained on), or the code or word of the refusal.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """`row` makes row N; `result` is `in`, or the code of the refusal."""

    name: str
    row: Callable[[int], Row]
    result: str = "in"
    pairs: bool = False
    supervise: str = "assistant"
    mode: str = "no_think"

    def texts(self, number: int) -> list[str]:
        """What has to be learned of a row."""
        if self.supervise == "all":
            return [why(number)[10:]]  # nothing comes before the first token, so it isn't learned
        answer = f"#### {number + 1}<" if self.name == "gsm8k" else tell(number)
        return [answer, why(number)] if self.mode == "think" else [answer]


def ask(n: int) -> str:
    return f"What is {n} plus one?"


def tell(n: int) -> str:
    return f"It is {WORDS[n]}, as one more than {n} is {WORDS[n]}."


def wrong(n: int) -> str:
    return f"It may be {WORDS[-1 - n]} or more, who knows about {n}."


def why(n: int) -> str:
    return f"The number {n} is given. Adding one to it gives {WORDS[n]}."


def chat(
    n: int, answer: str | None = None, role: str = "role", content: str = "content"
) -> list[Row]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [
        {role: names[0], content: ask(n)},
        {role: names[1], content: answer or tell(n)},
    ]


def user(n: int) -> list[Row]:
    return chat(n)[:1]


def transcript(n: int, answer: str) -> str:
    return f"\n\nHuman: {ask(n)}\n\nAssistant: {answer}"


SYSTEM = "You answer sums in a sentence."
SETS = (
    PublicSet(
        name="alpaca",
        row=lambda n: {
            "instruction": ask(n),
            "input": "",
            "output": tell(n),
            "text": f"Below is an instruction. ### Instruction: {ask(n)} ### Response: {tell(n)}",
        },
    ),
    PublicSet(
        name="alpaca with history (LLaMA-Factory)",
        row=lambda n: {
            "instruction": ask(n),
            "input": "Be quick.",
            "output": tell(n),
            "system": SYSTEM,
            "history": [["Hi", "Hello, ask me."]],
        },
    ),
    PublicSet(
        name="dolly",
        row=lambda n: {
            "instruction": ask(n),
            "context": "" if n % 2 else f"One plus one is two, and so on to {n}.",
            "response": tell(n),
            "category": "closed_qa",
        },
    ),
    PublicSet(
        name="ShareGPT",
        row=lambda n: {"id": str(n), "conversations": chat(n, role="from", content="value")},
    ),
    PublicSet(
        name="OpenOrca",
        row=lambda n: {
            "id": f"cot.{n}",
            "system_prompt": SYSTEM,
            "question": ask(n),
            "response": tell(n),
        },
    ),
    PublicSet(
        name="oasst1 messages",
        row=lambda n: {
            "message_id": str(n),
            "parent_id": None,
            "text": ask(n),
            "role": "prompter",
            "lang": "en",
            "rank": None,
        },
        result="wrong_stage",
    ),
    PublicSet(
        name="medical-o1",
        row=lambda n: {"Question": ask(n), "Complex_CoT": why(n), "Response": tell(n)},
        mode="think",
    ),
    PublicSet(
        name="gsm8k",
        row=lambda n: {"question": ask(n), "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"},
    ),
    PublicSet(
        name="MetaMathQA",
        row=lambda n: {
            "type": "GSM_Rephrased",
            "query": ask(n),
            "original_question": ask(n),
            "response": tell(n),
        },
    ),
    PublicSet(
        name="OpenMathReasoning",
        row=lambda n: {
            "problem": ask(n),
            "generated_solution": f"<think>\n{why(n)}\n</think>\n{tell(n)}",
            "expected_answer": str(n + 1),
            "problem_type": "has_answer_extracted",
            "problem_source": "ours",
            "generation_model": "ours",
            "pass_rate_72b_tir": "0.5",
            "inference_mode": "cot",
        },
        mode="think",
    ),
    PublicSet(
        name="NuminaMath",
        row=lambda n: {
            "source": "ours",
            "problem": ask(n),
            "solution": tell(n),
            "messages": chat(n),
        },
    ),
    PublicSet(
        name="problem + solution",
        row=lambda n: {"problem": ask(n), "solution": tell(n), "level": "1"},
    ),
    PublicSet(
        name="query + response + history (ms-swift)",
        row=lambda n: {
            "query": ask(n),
            "response": tell(n),
            "system": SYSTEM,
            "history": [["Hi", "Hello, ask me."]],
        },
    ),
    PublicSet(name="input + output", row=lambda n: {"input": ask(n), "output": tell(n)}),
    PublicSet(name="inputs + targets (P3)", row=lambda n: {"inputs": ask(n), "targets": tell(n)}),
    PublicSet(name="prompt + response", row=lambda n: {"prompt": ask(n), "response": tell(n)}),
    PublicSet(
        name="Nemotron post-training",
        row=lambda n: {
            "input": user(n),
            "output": tell(n),
            "category": "math",
            "license": "cc-by-4.0",
            "reasoning": "off",
            "system_prompt": "",
        },
    ),
    PublicSet(
        name="input and output messages", row=lambda n: {"input": user(n), "output": chat(n)[1:]}
    ),
    PublicSet(name="lmsys-chat", row=lambda n: {"conversation": chat(n), "model": "x", "turn": 1}),
    PublicSet(
        name="speaker + text",
        row=lambda n: {
            "dialogue": [
                {"speaker": "Human", "text": ask(n)},
                {"speaker": "Assistant", "text": tell(n)},
            ]
        },
    ),
    PublicSet(name="UltraChat", row=lambda n: {"id": str(n), "data": [ask(n), tell(n)]}),
    PublicSet(
        name="nested data",
        row=lambda n: {"id": n, "data": {"conversation": chat(n), "lang": "en"}},
    ),
    PublicSet(
        name="firefly",
        row=lambda n: {
            "conversation_id": n,
            "category": "qa",
            "conversation": [{"human": ask(n), "assistant": tell(n)}],
        },
    ),
    PublicSet(
        name="messages with from, text",
        row=lambda n: {"messages": chat(n, role="from", content="text")},
    ),
    PublicSet(name="messages as JSON", row=lambda n: {"messages": json.dumps(chat(n))}),
    PublicSet(
        name="question + reasoning + answer",
        row=lambda n: {"question": ask(n), "reasoning": why(n), "answer": tell(n)},
        mode="think",
    ),
    PublicSet(
        name="OpenR1 Math",
        row=lambda n: {
            "problem": ask(n),
            "solution": tell(n),
            "answer": str(n + 1),
            "generations": [f"<think>\n{why(n)}\n</think>\n{tell(n)}"],
            "messages": chat(n, f"<think>\n{why(n)}\n</think>\n{tell(n)}"),
        },
        mode="think",
    ),
    PublicSet(name="LIMA", row=lambda n: {"conversations": [ask(n), tell(n)], "source": "ours"}),
    PublicSet(name="Orca-Math", row=lambda n: {"question": ask(n), "answer": tell(n)}),
    PublicSet(
        name="sql-create-context",
        row=lambda n: {"question": ask(n), "context": f"CREATE TABLE t{n}", "answer": tell(n)},
    ),
    PublicSet(
        name="s1K",
        row=lambda n: {
            "solution": str(n + 1),
            "question": ask(n),
            "cot_type": "math",
            "thinking_trajectories": [why(n)],
            "attempt": tell(n),
        },
        result="wrong_stage",
    ),
    PublicSet(
        name="MMLU",
        row=lambda n: {"question": ask(n), "choices": [tell(n), wrong(n)], "answer": 0},
        result="wrong_stage",
    ),
    PublicSet(
        name="MedQA",
        row=lambda n: {"question": ask(n), "options": {"A": tell(n)}, "answer": tell(n)},
        result="wrong_stage",
    ),
    PublicSet(
        name="HotpotQA",
        row=lambda n: {
            "question": ask(n),
            "answer": str(n + 1),
            "context": {"title": ["sums"], "sentences": [[why(n)]]},
        },
        result="wrong_stage",
    ),
    PublicSet(
        name="OpenMathInstruct-1",
        row=lambda n: {
            "question": ask(n),
            "expected_answer": str(n + 1),
            "is_correct": n % 2 == 0,
            "generated_solution": tell(n),
        },
        result="wrong_stage",
    ),
    PublicSet(
        name="OpenThoughts metadata",
        row=lambda n: {
            "problem": ask(n),
            "deepseek_reasoning": why(n),
            "deepseek_solution": tell(n),
            "ground_truth_solution": str(n + 1),
        },
        result="unknown_shape",
    ),
    PublicSet(
        name="problem, solution and answer",
        row=lambda n: {"problem": ask(n), "solution": tell(n), "answer": str(n + 1)},
        result="wrong_stage",
    ),
    PublicSet(
        name="HelpSteer",
        row=lambda n: {"prompt": ask(n), "response": wrong(n), "helpfulness": 1, "correctness": 0},
        result="unknown_shape",
    ),
    PublicSet(
        name="UltraFeedback, all answers",
        row=lambda n: {
            "instruction": ask(n),
            "models": ["a", "b"],
            "completions": [{"response": tell(n)}, {"response": wrong(n)}],
        },
        result="wrong_stage",
    ),
    PublicSet(
        name="KTO, prompt and completion",
        row=lambda n: {"prompt": ask(n), "completion": wrong(n), "label": False},
        result="bad_answer",
    ),
    PublicSet(
        name="KTO, messages (TRL's kto-mix)",
        row=lambda n: {"prompt": user(n), "completion": chat(n)[1:], "label": bool(n)},
        result="bad_answer",
    ),
    PublicSet(
        name="KTO (LLaMA-Factory)",
        row=lambda n: {"messages": chat(n, wrong(n)), "kto_tag": False},
        result="bad_answer",
    ),
    PublicSet(
        name="PRM (TRL)",
        row=lambda n: {"prompt": ask(n), "completions": [why(n), tell(n)], "labels": [True, True]},
        result="wrong_stage",
    ),
    PublicSet(
        name="Math-Shepherd",
        row=lambda n: {"input": f"{ask(n)} {why(n)} ки", "label": f"{ask(n)} +", "task": "GSM8K"},
        result="unknown_shape",
    ),
    PublicSet(
        name="DAPO (verl)",
        row=lambda n: {
            "data_source": "math_dapo",
            "prompt": user(n),
            "ability": "MATH",
            "reward_model": {"ground_truth": str(n + 1), "style": "rule"},
            "extra_info": {"index": n},
        },
        result="wrong_stage",
    ),
    PublicSet(
        name="Big-Math",
        row=lambda n: {"problem": ask(n), "answer": str(n + 1), "source": "ours"},
        result="wrong_stage",
    ),
    PublicSet(
        name="GRPO prompts (TRL)",
        row=lambda n: {"prompt": user(n), "solution": str(n + 1)},
        result="wrong_stage",
    ),
    PublicSet(name="prompts alone", row=lambda n: {"prompt": user(n)}, result="unknown_shape"),
    PublicSet(
        name="ultrafeedback_binarized in sft",
        row=lambda n: {"prompt": ask(n), "chosen": chat(n), "rejected": chat(n, wrong(n))},
        result="wrong_stage",
    ),
    PublicSet(
        name="texts",
        row=lambda n: {"text": why(n), "url": "x"},
        supervise="all",
        mode="text",
    ),
    PublicSet(name="texts in sft", row=lambda n: {"text": why(n)}, result="plain_text"),
    PublicSet(
        name="ultrafeedback_binarized",
        row=lambda n: {
            "prompt": ask(n),
            "prompt_id": str(n),
            "chosen": chat(n),
            "rejected": chat(n, wrong(n)),
            "messages": chat(n),
            "score_chosen": 9.0,
            "score_rejected": 2.0,
        },
        pairs=True,
    ),
    PublicSet(
        name="hh-rlhf",
        row=lambda n: {
            "chosen": transcript(n, tell(n)),
            "rejected": transcript(n, wrong(n)),
        },
        pairs=True,
    ),
    PublicSet(
        name="orca_dpo_pairs",
        row=lambda n: {
            "system": SYSTEM,
            "question": ask(n),
            "chosen": tell(n),
            "rejected": wrong(n),
        },
        pairs=True,
    ),
    PublicSet(
        name="StackExchange pairs",
        row=lambda n: {
            "qid": n,
            "question": ask(n),
            "response_j": tell(n),
            "response_k": wrong(n),
            "date": "2020-01-01",
        },
        pairs=True,
    ),
    PublicSet(
        name="prompt + chosen_response",
        row=lambda n: {
            "prompt": ask(n),
            "chosen_response": tell(n),
            "rejected_response": wrong(n),
        },
        pairs=True,
    ),
    PublicSet(
        name="chosen_messages",
        row=lambda n: {
            "chosen_messages": chat(n),
            "rejected_messages": chat(n, wrong(n)),
            "score": 0.5,
        },
        pairs=True,
    ),
    PublicSet(
        name="DPO (LLaMA-Factory, alpaca)",
        row=lambda n: {
            "instruction": ask(n),
            "input": "",
            "chosen": tell(n),
            "rejected": wrong(n),
        },
        pairs=True,
    ),
    PublicSet(
        name="DPO (LLaMA-Factory, ShareGPT)",
        row=lambda n: {
            "conversations": chat(n, role="from", content="value")[:1],
            "chosen": {"from": "gpt", "value": tell(n)},
            "rejected": {"from": "gpt", "value": wrong(n)},
        },
        pairs=True,
    ),
    PublicSet(
        name="DPO (ms-swift)",
        row=lambda n: {"messages": chat(n), "rejected_response": wrong(n)},
        pairs=True,
    ),
    PublicSet(
        name="DPO (axolotl chat_template)",
        row=lambda n: {"messages": user(n), "chosen": chat(n)[1], "rejected": chat(n, wrong(n))[1]},
        pairs=True,
    ),
    PublicSet(
        name="query + chosen + rejected",
        row=lambda n: {"query": ask(n), "chosen": tell(n), "rejected": wrong(n)},
        pairs=True,
    ),
    PublicSet(
        name="distilabel math preferences",
        row=lambda n: {
            "instruction": ask(n),
            "chosen_response": tell(n),
            "chosen_rating": 5.0,
            "rejected_response": wrong(n),
            "rejected_rating": 1.0,
        },
        pairs=True,
    ),
    PublicSet(
        name="UltraInteract",
        row=lambda n: {
            "trajectory": chat(n, role="from", content="value")[:1],
            "chosen": tell(n),
            "rejected": wrong(n),
        },
        pairs=True,
        result="no_answer",
    ),
    PublicSet(
        name="PKU-SafeRLHF",
        row=lambda n: {
            "prompt": ask(n),
            "response_0": tell(n),
            "response_1": wrong(n),
            "better_response_id": 0,
        },
        pairs=True,
        result="unknown_shape",
    ),
    PublicSet(
        name="KTO in preference",
        row=lambda n: {"prompt": ask(n), "completion": tell(n), "label": True},
        pairs=True,
        result="wrong_stage",
    ),
    PublicSet(
        name="conversations in preference",
        row=lambda n: {"messages": chat(n)},
        pairs=True,
        result="wrong_stage",
    ),
    PublicSet(
        name="gsm8k in preference",
        row=lambda n: {"question": ask(n), "answer": tell(n)},
        pairs=True,
        result="wrong_stage",
    ),
    PublicSet(
        name="StackExchange pairs in sft",
        row=lambda n: {"question": ask(n), "response_j": tell(n), "response_k": wrong(n)},
        result="wrong_stage",
    ),
    PublicSet(
        name="problems in preference",
        row=lambda n: {"prompt": ask(n), "answer": str(n + 1)},
        pairs=True,
        result="wrong_stage",
    ),
)
