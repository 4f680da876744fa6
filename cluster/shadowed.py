"""Finds what would be imported in the place of one of the project's own packages, before any of them is."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

ROOMS = (
    "policy", "transport", "actors", "learner", "rewards", "shapes", "recipe", "report", "serving", "evaluation",
    "cluster",
)  # fmt: skip


def shadowed() -> str | None:
    """One sentence about a file or folder on the Python path that bears a room's name; None where there is none.

    A module of the user's may have any other name. Every process of a run has the working directory on its path, so
    what stands there would come first in all of them.
    """
    own = Path(__file__).resolve().parents[1]
    for room in ROOMS:
        spec = PathFinder.find_spec(room)
        if spec is None:  # an installed copy that another finder knows of
            continue
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
        if own not in found.parents:
            found = found.parent if found.name == "__init__.py" else found
            return (
                f"{found} has the name of bicot's own package {room!r} and would be imported in its place; rename it "
                f"(to my_{found.name}, say), or start bicot from another folder"
            )
    return None
