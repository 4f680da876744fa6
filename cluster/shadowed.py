"""Finds user modules that would be imported instead of the project's own packages, before any import."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

ROOMS = (
    "policy", "transport", "actors", "learner", "rewards", "shapes", "recipe", "report", "serving", "evaluation",
    "cluster",
)  # fmt: skip


def shadowed() -> str | None:
    """One sentence about a file or folder on the Python path that has a room's name; None if there is none.

    A user's module may have any other name. Every process of a run has the working directory first on its path, so a
    module there would replace the room in all of them.
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
