"""Requests are asked whether their inputs keep the rules before they are taken; what is found is carried out here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.errors import InvalidRequest
    from headrace.messages import InferRequest
    from headrace.pipeline.screen import Screen
    from headrace.telemetry.observer import ModelObserver


def screened(
    requests: list[InferRequest], screen: Screen, observer: ModelObserver
) -> tuple[list[InferRequest], Sequence[tuple[InferRequest, InvalidRequest]]]:
    """The requests of one look that go on, in their order, and those that do not, with the reason.

    Clipped inputs are changed, and what broke a rule is counted. observer: of the model that the requests are for.
    """
    findings = screen(requests)
    if findings is None:
        return requests, ()
    for (name, rule, policy), broke in findings.broken.items():
        observer.rule_broken(name, rule, policy, broke)
    for place, replaced in findings.replaced.items():
        request = requests[place]
        request.parts = [replaced.get(index, part) for index, part in enumerate(request.parts)]
    if not findings.refused:
        return requests, ()
    for place, error in findings.refused.items():
        observer.refused(error.reason, request=requests[place])
    left = [request for place, request in enumerate(requests) if place not in findings.refused]
    return left, [(requests[place], error) for place, error in findings.refused.items()]
