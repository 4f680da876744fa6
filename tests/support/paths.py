"""Where things lie that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
SHARED = ROOT.parent / "shared"
