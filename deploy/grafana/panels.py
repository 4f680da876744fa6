"""The dashboards' parts: panels as plain data, and their translation to Grafana's JSON.

A query may use only metrics of the catalogue: `metric` refuses others. `$run` is the selected run, `$window` the
time window of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, stat, timeseries
from grafana_foundation_sdk.builders import prometheus as prometheus_builders
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

from cluster.monitor.catalogue import series_names

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and the names of its series (Grafana's legend format)."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves, or with `stat` one number per series; `unit` is one of Grafana's, `width` is in columns of 24.

    `empty` says why a panel may have no data.
    """

    title: str
    note: str
    unit: str
    queries: tuple[Query, ...]
    stat: bool = False
    stacked: bool = False
    width: int = 8
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: rows of panels, by title."""

    uid: str
    title: str
    note: str
    rows: dict[str, tuple[Panel, ...]]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Every panel, in order."""
        return tuple(panel for row in self.rows.values() for panel in row)


def metric(name: str, *matchers: str) -> str:
    """A selector of the run's series of that name.

    Raises:
        ValueError: the catalogue has no such series.
    """
    if name not in series_names():
        raise ValueError(f"{name} is not in cluster/monitor/catalogue.py")
    run = ('run="$run"',) if name.startswith("bicot_") else ()
    inside = ",".join((*run, *matchers))
    return f"{name}{{{inside}}}" if inside else name


def rate(name: str, *matchers: str) -> str:
    """A counter's increase per second."""
    return f"rate({metric(name, *matchers)}[$window])"


def total(value: str, *by: str) -> str:
    """The sum of `value` by these labels."""
    return f"sum by ({', '.join(by)}) ({value})" if by else f"sum({value})"


def mean_seconds(histogram: str, *by: str) -> str:
    """Mean of a histogram over the window."""
    return f"{total(rate(histogram + '_sum'), *by)} / {total(rate(histogram + '_count'), *by)}"


def quantile(share: float, histogram: str, *by: str) -> str:
    """A quantile of a histogram over the window."""
    return f"histogram_quantile({share:g}, {total(rate(histogram + '_bucket'), 'le', *by)})"


def curves(
    title: str, note: str, unit: str, *queries: tuple[str, str], stacked: bool = False, empty: str = ""
) -> Panel:
    """A panel of curves; each query is (PromQL, legend)."""
    return Panel(title, note, unit, tuple(Query(*query) for query in queries), stacked=stacked, empty=empty)


def number(title: str, note: str, unit: str, *queries: tuple[str, str]) -> Panel:
    """A small panel that shows the newest value."""
    return Panel(title, note, unit, tuple(Query(*query) for query in queries), stat=True, width=4)


def build(board: Board) -> models.Dashboard:
    """The dashboard in Grafana's own model."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.note)
        .tags(["bicot"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("bicot")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["bicot"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(DATASOURCE)
            .query("label_values(bicot_planned_steps, run)")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
        )
        .with_variable(
            dashboard.CustomVariable("window")
            .label("Rates over")
            .values("1m,5m,15m,1h")
            .current(models.VariableOption(text="5m", value="5m", selected=True))
        )
    )
    for title, panels in board.rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(_stat(panel) if panel.stat else _curves(panel))
    return made.build()


def _targets(panel: Panel) -> Sequence[prometheus_builders.Dataquery]:
    return [
        prometheus_builders.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(65 + number)).range()
        for number, query in enumerate(panel.queries)
    ]


def _note(panel: Panel) -> str:
    return f"{panel.note} May be empty: {panel.empty}." if panel.empty else panel.note


def _curves(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(_note(panel))
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(8)
        .fill_opacity(40 if panel.stacked else 0)
        .show_points(options.VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    for target in _targets(panel):
        made = made.with_target(target)
    return made


def _stat(panel: Panel) -> stat.Panel:
    made = (
        stat.Panel()
        .title(panel.title)
        .description(_note(panel))
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(4)
        .graph_mode(options.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for target in _targets(panel):
        made = made.with_target(target)
    return made
