"""The merges of a sweep, prepared when they are asked for; of a grid also those that come next."""

import json

from dualign.errors import MergeError
from dualign.merging.merge import Prepared, prepare
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import Point, merge_at
from dualign.merging.sweep.search import points


class Merges:
    """`at` gives a point's merge; each is prepared once."""

    def __init__(self, stage: SweepStage, *, seed: int) -> None:
        self.stage, self.seed = stage, seed
        self._grid: list[Point] = points(stage) if stage.search == "grid" else []
        self._made: dict[str, Prepared] = {}

    def at(self, point: Point) -> Prepared:
        """The merge at a point, its inputs open and checked.

        Raises:
            MergeError: it can't be merged.
        """
        made = self._made.pop(name_of(point), None)
        return made or prepare(merge_at(self.stage.merge, point, self.stage.name), seed=self.seed)

    def after(self, point: Point, count: int) -> list[Prepared]:
        """Those of the next `count` points of a grid that can be merged; they are kept for `at`."""
        if point not in self._grid:
            return []
        first = self._grid.index(point) + 1
        found = []
        for following in self._grid[first : first + count]:
            try:
                self._made[name_of(following)] = self.at(following)
            except MergeError:
                continue  # told when its turn comes
            found.append(self._made[name_of(following)])
        return found


def name_of(point: Point) -> str:
    """The same text for the same point."""
    return json.dumps(point, sort_keys=True)
