"""The table of all trainings, and which of them are the scaling study proper."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gat.config import MODEL
from gat.report.columns import COLUMNS


def training_table(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a training, by cost.

    Args:
        results: of each training what `gat.study.results.Results.read` returns, and `changes_recipe`, see
            `gat.config.Run`; of other models' samples the same without a size and curves, and with `seed` None.

    Returns:
        The columns of the registry in its order, then all others; `warnings` as text, empty if there are none.
    """
    table = pd.DataFrame([dict(row) | {"warnings": "; ".join(row["warnings"])} for row in results])
    registered = [column.key for column in COLUMNS if column.key in table]
    others = [key for key in table if key not in registered]
    return table[[*registered, *others]].sort_values(["gmacs", "run", "seed"])


def given_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are other models' samples, which have no seed."""
    return table[table.seed.isna()]


def study_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study proper, by cost: not the model under test, and no run that changes the recipe."""
    return table[(table.run != MODEL) & ~table.changes_recipe].sort_values(["gmacs", "seed"])


def main_patch(study: pd.DataFrame) -> float:
    """The patch at which the study varies size: that of most runs; on a tie the finest; NaN without runs."""
    return float(study.drop_duplicates("run").patch.mode().min())


def smallest_and_largest(table: pd.DataFrame) -> list[str]:
    """The study's run of least and that of most compute; one if they are the same, none without a study."""
    runs = [str(run) for run in study_of(table).run.unique()]
    return list(dict.fromkeys([*runs[:1], *runs[-1:]]))
