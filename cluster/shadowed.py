"""Finds user modules that would be imported instead of the project's own or used packages, before any import."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

ROOMS = (
    "policy", "transport", "actors", "learner", "rewards", "shapes", "recipe", "report", "serving", "evaluation",
    "cluster",
)  # fmt: skip
USED = ("yaml", "pydantic", "rich", "numpy", "PIL", "torch", "transformers", "redis", "ray", "vllm", "deepspeed")


def shadowed() -> str | None:
    """One sentence about a file or folder named like a room or a package that bicot uses; None if there is none.

    Rooms are looked for on the whole Python path, packages in the working directory.

    A user's module may have any other name. Every process of a run has the working directory first on its path, so a
    module there would replace the room or package in all of them.
    """
    own = Path(__file__).resolve().parents[1]
    for room in ROOMS:
        spec = PathFinder.find_spec(room)
        if spec is None:  # an installed copy that another finder knows of
            continue
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
        if own not in found.parents:
            found = found.parent if found.name == "__init__.py" else found
            return _sentence(found, f"bicot's own package {room!r}")
    for package in USED:
        spec = PathFinder.find_spec(package, [str(Path.cwd())])
        if spec and spec.origin:  # a folder without __init__.py hides no installed package
            found = Path(spec.origin)
            found = found.parent if found.name == "__init__.py" else found
            return _sentence(found, f"the package {package!r}, which bicot uses,")
    return None


def _sentence(found: Path, package: str) -> str:
    return (
        f"{found} has the name of {package} and would be imported in its place; rename it "
        f"(to my_{found.name}, say), or start bicot from another folder"
    )
