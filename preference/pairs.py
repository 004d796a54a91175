"""The pairs stage: `dualign pairs RECIPE` samples models in both modes into pairs.jsonl.

    questions -> samples of each side -> scores -> choice of pairs -> pairs.jsonl

Right against wrong: a verifier sorts the samples of a prompt. Strong against weak, as for SmolLM3:
with `rejected_model`, one model writes the chosen answers and the other the rejected ones. Revised
against as it was: with `revise`, a model mends the other's answers. A judge sorts what no verifier can.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualign.errors import DataError
from dualign.preference.pair_choice import PromptPairs, choose, compare, count_outcomes, rows_of
from dualign.preference.pair_lengths import TokenCounter, length_figures, length_table
from dualign.preference.pair_questions import read_questions
from dualign.preference.pair_revisions import Reviser
from dualign.preference.pair_samples import AskedPrompt, Sampler
from dualign.preference.pair_scores import PairJudge, measure, verify
from dualign.preference.pairs_config import PairsStage
from dualign.rundir import Outcome, summarize_outcomes
from dualign.terminal import wide_console

logger = logging.getLogger(__name__)


def run(stage: PairsStage, work: Path, *, seed: int) -> Outcome:
    """Sample, score, choose, write; answers already in `work` aren't sampled again.

    Raises:
        DataError: there is no pair.
    """
    questions = read_questions(stage, seed=seed)
    judge = None if stage.judge is None else PairJudge(stage, work, seed=seed)
    sampler = Sampler(stage, work, seed=seed)
    prompts = sampler.prompts(questions.items)
    measure(prompts, sampler.counter)
    reasons = verify(prompts)
    chosen, figures = _candidates(stage, sampler, prompts, judge)
    choose(stage, chosen, seed=seed)
    rows = summarize_outcomes(count_outcomes(chosen, questions.passed))
    if not rows["kept"]:
        raise DataError(
            f"stage {stage.name}: no pair came of {rows['in']} prompts: {rows['dropped']}; "
            "docs/pairs.md says what each reason means"
        )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(chosen)]
    (work / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    metrics: dict[str, Any] = {
        "pairs": len(lines),
        "samples": sampler.samples,
        "lengths": _lengths(stage, chosen, sampler.counter),
    }
    metrics |= {"endpoints": sampler.asked} if sampler.asked else {}
    metrics |= {"reasons": dict(reasons.most_common())} if reasons else {}
    return Outcome(metrics=metrics | figures, rows=rows, data=questions.sources)


def _candidates(
    stage: PairsStage, sampler: Sampler, prompts: Sequence[AskedPrompt], judge: PairJudge | None
) -> tuple[list[PromptPairs], dict[str, Any]]:
    """Return the pairs that each prompt may give, and the figures of judge and reviser for run.json."""
    figures: dict[str, Any] = {}
    if stage.revise is None:
        if judge is not None:
            figures["judge"] = judge.score(prompts)
        return compare(prompts, judged=judge is not None), figures
    reviser = Reviser(stage.revise, sampler)
    items = reviser.revise(prompts)
    figures["revisions"] = reviser.record()
    if judge is not None:
        figures["judge"] = judge.keep_better(items)
    return items, figures


def _lengths(
    stage: PairsStage, chosen: Sequence[PromptPairs], counter: TokenCounter
) -> dict[str, Any]:
    """Return the lengths of the pairs of each mode; print them, and what they lead to."""
    tokens: dict[str, list[tuple[int, int]]] = {}
    for item in chosen:
        for pair in item.pairs:
            lengths = (pair.chosen.tokens, pair.rejected.tokens)
            tokens.setdefault(item.prompt.mode, []).append(lengths)
    modes = {mode: length_figures(pairs) for mode, pairs in tokens.items()}
    wide_console().print(length_table(modes, counter.unit))
    for mode, figures in modes.items():
        if "warning" in figures:
            logger.warning("stage %s, %s: %s", stage.name, mode, figures["warning"])
    return {"unit": counter.unit, "modes": modes}
