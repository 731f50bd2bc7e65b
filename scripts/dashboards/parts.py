"""What all dashboards are made of: queries, panels, variables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel

SERVER: Final = 'job=~"$job", instance=~"$instance"'
"""Selects servers. A metric's own label `instance` becomes `exported_instance`: Prometheus has an `instance` itself."""
MODEL: Final = SERVER + ', model=~"$model", version=~"$version"'
"""Selects model versions of these."""
RATE: Final = "[$__rate_interval]"

SOURCE: Final = models.DataSourceRef("prometheus", "${datasource}")


class Query:
    """expr: PromQL. legend: of each series, with `{{label}}`."""

    def __init__(self, expr: str, legend: str = "") -> None:
        self.expr = expr
        self.legend = legend

    def built(self, number: int) -> prometheus.Dataquery:
        """For a panel, as its so-manieth query."""
        query = prometheus.Dataquery().expr(self.expr).ref_id(chr(ord("A") + number)).datasource(SOURCE)
        return query.legend_format(self.legend) if self.legend else query


def rate(metric: str, by: str = "", selector: str = MODEL) -> str:
    """The rate of a counter each second, summed over what `by` does not name."""
    return f"sum{_by(by)} (rate({metric}{{{selector}}}{RATE}))"


def quantile(q: float, histogram: str, by: str = "", selector: str = MODEL) -> str:
    """A quantile of a histogram, by these labels."""
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', ', '.join(filter(None, ('le', by))), selector)})"


def mean(histogram: str, by: str = "", selector: str = MODEL) -> str:
    """The mean of a histogram; none where nothing happened."""
    return f"{rate(histogram + '_sum', by, selector)} / ({rate(histogram + '_count', by, selector)} > 0)"


def lines(
    title: str, *queries: Query, unit: str, about: str, width: int = 8, stacked: bool = False, top: float | None = None
) -> timeseries.Panel:
    """Series over time. about: what is seen, and what to make of it. top: the end of the axis."""
    legend = common.VizLegendOptions().show_legend(True).display_mode(kinds.LegendDisplayMode.LIST)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .height(8)
        .span(width)
        .datasource(SOURCE)
        .line_width(1)
        .fill_opacity(60 if stacked else 5)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(legend.placement(kinds.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
        .targets([query.built(number) for number, query in enumerate(queries)])
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    return panel if top is None else panel.max(top)


def number(
    title: str, query: Query, *, unit: str, about: str, width: int = 4, bad_from: float | None = None
) -> stat.Panel:
    """The newest value, large. bad_from: where it turns red."""
    steps = [models.Threshold(None, "green")]
    if bad_from is not None:
        steps.append(models.Threshold(bad_from, "red"))
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .height(4)
        .span(width)
        .datasource(SOURCE)
        .color_mode(kinds.BigValueColorMode.NONE if bad_from is None else kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .targets([query.built(0)])
    )


def heat(title: str, histogram: str, *, unit: str, about: str, width: int = 12) -> heatmap.Panel:
    """A histogram over time."""
    query = prometheus.Dataquery().expr(rate(histogram + "_bucket", "le")).ref_id("A").datasource(SOURCE)
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .height(9)
        .span(width)
        .datasource(SOURCE)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .targets([query.format(PromQueryFormat.HEATMAP).legend_format("{{le}}")])
    )


def rows(title: str, query: Query, *, about: str, hidden: Sequence[str] = (), width: int = 12) -> table.Panel:
    """The newest values, a row for each series. hidden: labels that are of no use there."""
    built = query.built(0).format(PromQueryFormat.TABLE).instant()
    out = dict.fromkeys(["Time", *hidden], True)
    return (
        table.Panel()
        .title(title)
        .description(about)
        .height(8)
        .span(width)
        .datasource(SOURCE)
        .with_transformation(models.DataTransformerConfig("organize", options={"excludeByName": out}))
        .targets([built])
    )


def make(uid: str, title: str, about: str, panels: Sequence[Panel], *, by_model: bool = True) -> str:
    """A whole dashboard as JSON text. by_model: whether models can be chosen."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["headrace"])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Headrace").type(models.DashboardLinkType.DASHBOARDS).tags(["headrace"]))
        .with_variable(dashboard.DatasourceVariable("datasource").label("data source").type("prometheus"))
        .with_variable(_choice("job", "label_values(headrace_connections, job)"))
        .with_variable(_choice("instance", 'label_values(headrace_connections{job=~"$job"}, instance)', "server"))
    )
    if by_model:
        found = f"headrace_request_seconds_count{{{SERVER}}}"
        made = made.with_variable(_choice("model", f"label_values({found}, model)"))
        version = f'headrace_request_seconds_count{{{SERVER}, model=~"$model"}}'
        made = made.with_variable(_choice("version", f"label_values({version}, version)"))
    for number_of_panel, panel in enumerate(panels, 1):
        made = made.with_panel(panel.id(number_of_panel))
    return _text(made.build())


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _choice(name: str, query: str, label: str = "") -> dashboard.QueryVariable:
    every = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label or name)
        .query(query)
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(every)
    )


def _text(made: models.Dashboard) -> str:
    return json.dumps(made, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def busy_instances() -> timeseries.Panel:
    """A panel: how busy each instance of the models is."""
    return lines(
        "Busy instances",
        Query(
            rate("headrace_instance_busy_seconds_total", "model, version, exported_instance"),
            "{{model}} {{version}} instance {{exported_instance}}",
        ),
        unit="percentunit",
        about="Share of time in which an instance ran batches, summed over servers.",
    )
