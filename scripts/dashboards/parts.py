"""What both dashboards are made of: queries, panels, variables."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "finetune-operator"
FLEET_UID = "finetune-fleet"
JOB_UID = "finetune-job"
WINDOW = "1h"
"""What rare events are counted over in graphs."""

_DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT = 8

Panel = Builder[models.Panel]


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and what its series are called."""

    expression: str
    legend: str = ""


def counted(selector: str, window: str, by: str = "") -> str:
    """How much counters rose within a window, also those whose first sample lies in it: that one is no `increase`.

    Jobs are rare and long: an outcome of a namespace may be counted once a month, and ten hours in one step. A series
    that began within the window counts with the most it was, so that it still does when its replica is gone.
    """
    rise = f"(max_over_time({selector}[{window}]) unless {selector} offset {window}) or increase({selector}[{window}])"
    return f"sum{f' by ({by})' if by else ''} ({rise})"


def quantile(q: float, buckets: str, window: str) -> str:
    """A quantile of what a histogram observed within a window."""
    return f"histogram_quantile({q}, {counted(buckets, window, 'le')})"


def graph(title: str, about: str, unit: str, *queries: Query, span: int = 8, stacked: bool = False) -> Panel:
    """Series over time."""
    panel = (
        timeseries.Panel()
        .title(title).description(about).unit(unit).span(span).height(_HEIGHT).datasource(_DATASOURCE)
        .fill_opacity(20 if stacked else 0).axis_soft_min(0)
        # A job of hours in a view of weeks has few points, and a line needs two.
        .show_points(common_models.VisibilityMode.AUTO)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions().show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST).placement(common_models.LegendPlacement.BOTTOM)
        )
    )  # fmt: skip
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for target in _targets(queries, instant=False):
        panel.with_target(target)
    return panel


def figure(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    span: int = 4,
    names_only: bool = False,
    tall: bool = False,
    colors: Sequence[tuple[float | None, str]] = (),
) -> Panel:
    """Single numbers of now, or only the names of the series there are. Colors are by value, from each one on."""
    mode = common_models.BigValueTextMode
    shown = mode.NAME if names_only else mode.AUTO if any(query.legend for query in queries) else mode.VALUE
    panel = (
        stat.Panel()
        .title(title).description(about).unit(unit).span(span).height(_HEIGHT if tall else _HEIGHT // 2)
        .datasource(_DATASOURCE)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .text_mode(shown)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(colors or [(None, "text")]))
    )  # fmt: skip
    for target in _targets(queries, instant=True):
        panel.with_target(target)
    return panel


def bars(title: str, about: str, unit: str, *queries: Query, span: int = 8, color: str = "blue") -> Panel:
    """A bar for each series, of now."""
    panel = (
        bargauge.Panel()
        .title(title).description(about).unit(unit).span(span).height(_HEIGHT).datasource(_DATASOURCE).min(0)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds([(None, color)]))
    )  # fmt: skip
    for target in _targets(queries, instant=True):
        panel.with_target(target)
    return panel


def rows_of(
    title: str,
    about: str,
    columns: Mapping[str, tuple[Query, str]],
    labels: Mapping[str, str],
    links: Mapping[str, str],
) -> Panel:
    """A table: instant queries joined by the labels they share.

    Columns have a unit, or none where only the query's labels are shown; labels may have another name, and a link.
    """
    panel = table.Panel().title(title).description(about).span(24).height(_HEIGHT).datasource(_DATASOURCE)
    renamed: dict[str, object] = dict(labels)
    hidden: dict[str, object] = {"Time": True}
    for letter, (name, (query, unit)) in zip(string.ascii_uppercase, columns.items(), strict=False):
        panel.with_target(_target(query, letter, instant=True).format(PromQueryFormat.TABLE))
        if unit:
            renamed[f"Value #{letter}"] = name
            panel.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
        else:
            hidden[f"Value #{letter}"] = True
    for name, url in links.items():
        panel.override_by_name(name, [models.DynamicConfigValue("links", [{"title": "${__value.text}", "url": url}])])
    organized = {"excludeByName": hidden, "renameByName": renamed}
    return panel.with_transformation(models.DataTransformerConfig("merge", options={})).with_transformation(
        models.DataTransformerConfig("organize", options=organized)
    )


def make_dashboard(
    uid: str,
    title: str,
    about: str,
    variables: Sequence[Builder[models.VariableModel]],
    rows: Mapping[str, Sequence[Panel]],
) -> models.Dashboard:
    """A dashboard of rows of panels, with links to the others of this operator."""
    links = dashboard.DashboardLink("Dashboards").type(models.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True)
    board = (
        dashboard.Dashboard(title)
        .uid(uid).description(about).tags([TAG]).link(links).time("now-6h", "now").refresh("30s").timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )  # fmt: skip
    for variable in variables:
        board.with_variable(variable)
    for heading, panels in rows.items():
        board.with_row(dashboard.Row(heading))
        for panel in panels:
            board.with_panel(panel)
    built = board.build()
    for number, each in enumerate(built.panels or (), start=1):
        each.id_val = number
    return built


def variable(name: str, label: str, query: str, *, many: bool = False) -> Builder[models.VariableModel]:
    """A variable with the values of a label."""
    made = (
        dashboard.QueryVariable(name)
        .label(label).query({"query": query, "refId": f"variable-{name}"}).datasource(_DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    )  # fmt: skip
    if many:
        every = models.VariableOption(selected=True, text="All", value="$__all")
        made.multi(True).include_all(True).all_value(".*").current(every)
    return made


def _targets(queries: Sequence[Query], *, instant: bool) -> list[prometheus.Dataquery]:
    return [
        _target(query, letter, instant=instant) for letter, query in zip(string.ascii_uppercase, queries, strict=False)
    ]


def _target(query: Query, letter: str, *, instant: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(letter).expr(query.expression).legend_format(query.legend)
    return target.instant() if instant else target.range()


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> Builder[models.ThresholdsConfig]:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value, color) for value, color in steps])
    )
