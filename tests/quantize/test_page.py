import re
from dataclasses import replace
from itertools import pairwise
from math import log10

import pytest
from page_checks import pictures_of, tags_of
from quantize.test_report import REPORT

from headrace.quantize import plots
from headrace.quantize.page import page
from headrace.quantize.report import LayerError, Measure, SpeedPoint

POINTS = tuple(SpeedPoint(2**i, 100.0 * 2**i, 250.0 * 2**i, 2.5, 2.4, 2.6) for i in range(5))


def picture(text, label):
    (found,) = [one for one in pictures_of(text) if label in one.get("aria-label")]
    return found


def dots(svg, kind):
    return [one for one in svg.iter("circle") if kind in one.get("class").split()]


def xs(svg, kind):
    return [float(dot.get("cx")) for dot in dots(svg, kind)]


def test_the_page_needs_no_other_file_and_says_what_became_of_it():
    text = page(REPORT)
    assert sum(tag == "svg" for tag, _ in tags_of(text)) == 4
    assert "Version 2 was made of version 1: the gate holds." in text
    assert "relative 0.9949" in text
    for shown in (
        "size: 30% of 1000 B",
        "accuracy",
        "per channel",
        "minmax",
        "ab",
        "cd",
        "ef",
        "40 rows",
        "avx2",
        ">w<",
    ):
        assert shown in text
    assert "prefers-color-scheme: dark" in text


def test_a_gate_that_does_not_hold_is_an_alarm():
    text = page(replace(REPORT, passed=False, version=0, gate=0.999))
    assert '<span class="alarm">The gate does not hold: no version was made.</span>' in text
    assert xs(picture(text, "gate"), "left")
    assert not xs(picture(text, "gate"), "now")


def test_agreement_is_called_so():
    measure = Measure("top1_agreement", False, 100, 1.0, 0.99, 0.99, 0.97, 1.0, "p")
    text = page(replace(REPORT, measure=measure))
    assert "agreement with the source: top1 agreement" in text
    assert "There were no labels" in text
    assert "accuracy" not in text
    assert "There were no labels" not in page(REPORT)


def test_what_comes_from_outside_is_text():
    evil = "<script>alert(1)</script>"
    layers = (LayerError(evil, evil, 0.1, True),)
    lineage = replace(REPORT.lineage, processor=evil, tools={evil: evil})
    options = {evil: evil}
    text = page(
        replace(
            REPORT,
            model=evil,
            layers=layers,
            excluded=((evil, evil),),
            warnings=(evil,),
            options=options,
            lineage=lineage,
        )
    )
    tags_of(text)
    pictures_of(text)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 9


def test_what_there_is_not_is_not_drawn():
    text = page(replace(REPORT, speed=(), layers=(), excluded=(), tries=(), warnings=(), options={}))
    assert len(pictures_of(text)) == 2
    assert "Speed" not in text
    assert "What each layer costs" not in text
    assert "Left in float" not in text


def test_gate_interval_and_result_are_on_one_scale():
    svg = picture(page(REPORT), "gate")
    (gate,) = [float(one.get("x1")) for one in svg.iter("line") if one.get("class") == "gate"]
    (result,) = xs(svg, "now")
    (interval,) = svg.iter("rect")
    low = float(interval.get("x"))
    high = low + float(interval.get("width"))
    (tried,) = xs(svg, "before")
    assert tried < gate == low < result < high  # 0.9, then the gate and the interval's low end, 0.99, 0.9949, 1
    assert (result - low) / (high - low) == pytest.approx(0.49, abs=0.02)


@pytest.mark.parametrize("relative", [-3e9, -0.2, 0.0, 1.0, 1e9])
def test_no_measure_leaves_the_picture(relative):
    measure = replace(REPORT.measure, relative=relative, low=relative - 1e9, high=relative + 1e9)
    svg = picture(page(replace(REPORT, measure=measure, tries=((0, relative), (1, 0.5)))), "gate")
    assert all(0 <= x <= 320 for x in xs(svg, "now") + xs(svg, "left") + xs(svg, "before"))
    assert all(0 <= float(one.get("x")) <= 320 for one in svg.iter("rect"))


def test_speed_is_drawn_to_scale():
    text = page(replace(REPORT, speed=POINTS))
    svg = picture(text, "rows a second")
    source, result = dots(svg, "before"), dots(svg, "now")
    assert [float(dot.get("cx")) for dot in source] == pytest.approx([60 + 102.5 * i for i in range(5)])
    heights = [[150 - float(dot.get("cy")) for dot in side] for side in (source, result)]
    assert [b / a for a, b in zip(*heights, strict=True)] == pytest.approx([2.5] * 5, rel=0.05)
    assert heights[1][4] / heights[1][3] == pytest.approx(2, rel=0.05)
    assert "<td>16</td><td>1,600</td><td>4,000</td><td>2.50</td><td>2.40 to 2.60</td>" in text


def test_the_most_sensitive_layers_come_first_and_those_in_float_are_marked():
    layers = tuple(LayerError(f"layer{i}", "Gemm", 10.0**-i, kept_float=i == 0) for i in range(5))
    svg = picture(page(replace(REPORT, layers=layers[::-1])), "layer")
    names = [one.text for one in svg.iter("text") if "layer" in one.text]
    assert names == [f"layer{i} (Gemm)" for i in range(5)]
    (left,) = dots(svg, "left")
    assert left.find("title").text == "layer0 (Gemm): 1, left in float"
    places = xs(svg, "left") + xs(svg, "now")
    steps = [a - b for a, b in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert steps[0] > 0


def test_of_many_layers_the_worst_are_drawn():
    layers = tuple(LayerError(f"encoder/layer/{'x' * 40}/{i:03}", "Conv", i / 100, False) for i in range(200))
    text = page(replace(REPORT, layers=layers))
    svg = picture(text, "layer")
    assert len(dots(svg, "now")) == plots.MOST_LAYERS
    assert "The 60 most sensitive ones are shown." in text
    shown = [one.text for one in svg.iter("text") if "Conv" in one.text]
    assert shown[0].endswith("199 (Conv)")
    assert max(map(len, shown)) <= 48 + len(" (Conv)")


@pytest.mark.parametrize("error", [0.0, 1e-30, 1e6])
def test_any_error_has_its_place(error):
    layers = (LayerError("a", "Gemm", error, False), LayerError("b", "Gemm", 0.0, False))
    svg = picture(page(replace(REPORT, layers=layers)), "layer")
    assert all(290 <= x <= 510 for x in xs(svg, "now"))


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (9 << 20, "9.0 MiB"), (3 << 40, "3072.0 GiB")]
)
def test_sizes_are_for_people(count, said):
    assert plots.octets(count) == said


@pytest.mark.parametrize("most", [0.0, 0.03, 1.0, 7.0, 12.0, 99_999.0, 8e6])
def test_ticks_are_few_and_round(most):
    ticks = plots._ticks(most)
    assert ticks[0] == 0
    assert 1 <= len(ticks) <= 6
    assert ticks[-1] <= most
    if most:
        assert len(ticks) >= 3
        step = ticks[1]
        assert round(step / 10 ** round(log10(step) - 0.5), 6) in (1, 2, 5)


def test_one_batch_size_is_a_point():
    svg = picture(page(replace(REPORT, speed=POINTS[:1])), "rows a second")
    assert len(dots(svg, "now")) == 1
    assert not re.search("nan|inf", page(replace(REPORT, speed=POINTS[:1])))


def test_ratios_stand_above_both_curves():
    slower, quicker = SpeedPoint(1, 100.0, 50.0, 0.5, 0.4, 0.6), SpeedPoint(2, 100.0, 150.0, 1.5, 1.4, 1.6)
    svg = picture(page(replace(REPORT, speed=(slower, quicker))), "rows a second by batch size, source and result")
    told = {one.text: float(one.get("y")) for one in svg.iter("text") if one.text and one.text.endswith("x")}
    tops = [
        min(float(one.get("cy")) for one in svg.iter("circle") if f"batch of {n}:" in "".join(one.itertext()))
        for n in (1, 2)
    ]
    assert told["0.50x"] < tops[0]
    assert told["1.50x"] < tops[1]
