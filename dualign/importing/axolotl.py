"""What rows of axolotl's table can't say: its data sets."""

from dualign.importing.draft import Draft


def fill(draft: Draft) -> None:
    """Write the data sources."""
    if not draft.get("base_model"):
        draft.problems.append("base_model: isn't there; a recipe needs the model to train")
    sources = draft.get("datasets")
    if not isinstance(sources, list) or not sources:
        draft.problems.append("datasets: expected a list of data sets, found none")
        return
    for number, _ in enumerate(sources):
        path = str(draft.get("datasets", number, "path"))
        draft.carry(
            ("datasets", number, "path"), f"data.sources[{number}].path", draft.path(path) or path
        )
