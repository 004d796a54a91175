"""The kinds of judge, in one table. They never see the thinking.

A new kind is a file of this room, its row in `JUDGES`, and its settings in `config.py`.
"""

from dualign.generation.samples import SampleFile
from dualign.judges.base import Judge
from dualign.judges.config import JudgeConfig
from dualign.judges.pairwise import PairwiseJudge
from dualign.judges.reward_model import RewardModel
from dualign.judges.rubric import RubricJudge

JUDGES: dict[str, type] = {
    "pairwise": PairwiseJudge,
    "rubric": RubricJudge,
    "reward_model": RewardModel,
}


def open_judge(config: JudgeConfig, file: SampleFile, *, label: str, seed: int) -> Judge:
    """Open the judge that a recipe names; weights are loaded when it first judges.

    Args:
        file: where its judgments go as they come; those that are there aren't asked again.
        label: the stage's name, for the progress bar.
        seed: of the stage; it counts where judgments are sampled.

    Raises:
        CheckpointError: no such model.
        EvaluationError: the endpoint can't be used, or the model is no reward model.
    """
    judge: Judge = JUDGES[config.kind](config, file, label=label, seed=seed)
    return judge
