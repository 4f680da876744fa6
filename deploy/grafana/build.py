"""Writes the dashboards as JSON: python -m deploy.grafana.build (or make metrics)."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import cluster_board, pools_board, rewards_board, run_board
from deploy.grafana.panels import build

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (run_board.BOARD, pools_board.BOARD, rewards_board.BOARD, cluster_board.BOARD)


def rendered() -> dict[str, str]:
    """Every dashboard's JSON by file name."""
    return {
        f"{board.uid}.json": JSONEncoder(sort_keys=True, indent=2).encode(build(board)) + "\n" for board in BOARDS
    }


if __name__ == "__main__":
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
