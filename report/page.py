"""The HTML report of one run or of several: a self-contained file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from recipe.errors import RunError
from recipe.run_folder import RunFolder, write_atomically
from report.chart import style
from report.curves import held_out_topics, step_topics, task_topics, window
from report.runs import ReportRun, Spread, differences, duration, group_runs, read_runs
from report.samples import compared_cots, fixed_prompts, mean_lengths
from report.subject import scores, sentence
from report.tables import environment_table, held_out_table, run_rows, timing

_NAMES_IN_FILE = 4
_LONG = 120
"""Characters of a config value in a table."""


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` from the contents of the run folder, finished or not.

    Raises:
        RunError: the folder holds no run, a file is not as a run writes it, or the report cannot be written.
    """
    return _write(folder.report, report_html(read_runs([folder])))


def write_comparison(folders: Sequence[RunFolder], out: Path | None = None) -> Path:
    """Write one report of several runs to `out`, or beside the first run's folder.

    Raises:
        RunError: a folder holds no run, the same one is given twice, a file is not as a run writes it, or the report
            cannot be written.
    """
    html = report_html(read_runs(folders))
    if out is None:
        names = [folder.path.name for folder in folders]
        more = [f"and-{len(names) - _NAMES_IN_FILE}-more"] if len(names) > _NAMES_IN_FILE else []
        out = folders[0].path.parent / f"report-{'-'.join(names[:_NAMES_IN_FILE] + more)}.html"
    return _write(out, html)


def _write(path: Path, html: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be written ({error}); --out FILE takes another") from error
    return path


def report_html(runs: Sequence[ReportRun]) -> str:
    """The page: runs whose configs differ only in the seed form one group; groups are shown side by side."""
    groups = group_runs(runs)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["style"] = style
    environment.filters |= {"spread": _spread, "plain": _plain, "breakable": _breakable, "duration": duration}
    table = held_out_table(groups)
    rows = run_rows(groups, table.split if table else None)
    prompts = {split: fixed_prompts(runs, split) for split in ("dev", "test")}
    cots = compared_cots(prompts["test"]) or compared_cots(prompts["dev"])
    return environment.get_template("report.html.j2").render(
        name=", ".join(run.name for run in runs),
        runs=runs,
        groups=groups,
        sentences=[sentence(group) for group in groups],
        scores=scores(groups),
        metric=runs[0].metric,
        run_rows=rows,
        reward_names=list(dict.fromkeys(reward for row in rows for reward in row.rewards)),
        differences=differences(groups),
        held_out=table,
        held_out_topics=held_out_topics(groups),
        step_topics=step_topics(groups),
        task_topics=task_topics(groups),
        window=window(groups),
        prompts=prompts,
        cots=cots,
        cot_lengths=mean_lengths(cots, runs),
        timings=[one for group in groups if (one := timing(group))],
        environment=environment_table(runs),
    )


def _spread(value: Spread | None, form: str = "%.3f") -> Markup:
    """A mean, with the range under it if the values differ."""
    if value is None:
        return Markup("–")
    low, high = form % value.low, form % value.high
    return Markup(form % value.mean + (f" <small>{low}..{high}</small>" if low != high else ""))


def _breakable(name: str) -> Markup:
    """A long name that can break over several lines of a table's cell."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")).replace("/", Markup("/<wbr>")))


def _plain(value: Any) -> str:
    """A config value in a table."""
    if value is None:
        return "–"
    if value and isinstance(value, dict):
        value = ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONG else text[:_LONG] + "…"
