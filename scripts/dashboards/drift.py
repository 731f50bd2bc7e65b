"""Whether inputs still look like the data that the model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import MODEL, Query, lines, make, number, rate, rows

if TYPE_CHECKING:
    from dashboards.parts import Panel

BY_FEATURE = "{{model}} {{version}} {{direction}} {{tensor}} {{feature}}"


def text() -> str:
    """The dashboard as JSON."""
    score = f"headrace_drift_score{{{MODEL}}}"
    share = f"headrace_drift_share{{{MODEL}}}"
    alarm = f"headrace_drift_alarm{{{MODEL}}}"
    seen, skipped = rate("headrace_drift_rows_total", "model"), rate("headrace_drift_skipped_rows_total", "model")
    panels: list[Panel] = [
        number("Alarms", Query(f"sum({alarm})"), unit="none", about="Features that have drifted.", width=6, bad_from=1),
        number("Features", Query(f"count({alarm})"), unit="none", about="That are watched.", width=6),
        number("Rows", Query(rate("headrace_drift_rows_total")), unit="rowsps", about="That were looked at.", width=6),
        number(
            "Rows passed over",
            Query(rate("headrace_drift_skipped_rows_total")),
            unit="rowsps",
            about="Because looking at them would have cost more than is allowed.",
            width=6,
        ),
        lines(
            "Scores",
            Query(f"max by (model, version, tensor, direction, feature, score) ({score})", BY_FEATURE + " {{score}}"),
            unit="none",
            about="Distance between what comes and the reference, by feature; 0 is none.",
            width=16,
        ),
        lines(
            "Alarms",
            Query(f"max by (model, version, tensor, direction, feature) ({alarm})", BY_FEATURE),
            unit="none",
            about="1 while a feature has drifted.",
            top=1,
        ),
        rows(
            "Features that have drifted most",
            Query(f"topk(20, max by (model, version, tensor, direction, feature, score) ({score}))"),
            about="The newest scores.",
            width=16,
        ),
        lines(
            "Missing, outside, unseen",
            Query(f"max by (model, version, tensor, direction, feature, what) ({share})", BY_FEATURE + " {{what}}"),
            unit="percentunit",
            about="Of values: without a number, beyond the range of the reference; of items: those that it has not.",
            width=16,
            top=1,
        ),
        lines(
            "Share of rows looked at",
            Query(f"{seen} / ({seen} + {skipped} > 0)", "{{model}}"),
            unit="percentunit",
            about="Under load, rows are sampled to stay within the budget.",
            top=1,
        ),
    ]
    return make("headrace-drift", "Headrace / Drift", "Inputs against the data that models were trained on.", panels)
