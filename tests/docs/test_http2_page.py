import re
from pathlib import Path

from headrace.config import Settings
from headrace.settings_sources import leaves, shown_default
from headrace.transport.http2.limits import Limit, Limits

PAGE = (Path(__file__).parents[2] / "docs" / "http2.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE))


def test_the_page_lists_every_limit():
    assert ROWS.keys() == set(Limit)


def test_the_settings_on_the_page_are_there_with_their_defaults():
    defaults = {".".join(leaf.path): shown_default(leaf) for leaf in leaves(Settings)}
    named = re.findall(r"`(http2\.\w+)`(?: (\d+)( [KM]iB)?)?", PAGE)
    assert len(named) > 15
    for name, number, unit in named:
        if number:
            shown = defaults[name].split(", ")
            value = int(number) * {"": 1, " KiB": 1 << 10, " MiB": 1 << 20}[unit]
            assert shown[0] == str(value), name
        assert name in defaults


def test_the_figures_on_the_page_are_those_in_force():
    limits = Limits()
    for label, burst, rate in (
        (Limit.RAPID_RESET, limits.resets, limits.resets_per_second),
        (Limit.STREAM_ERRORS, limits.glitches, limits.glitches_per_second),
        (Limit.WINDOW_UPDATES, limits.window_updates, limits.window_updates_per_second),
        (Limit.SMALL_DATA, limits.small_frames, limits.small_frames_per_second),
    ):
        assert f" {burst}" in ROWS[label]
        assert f"then {rate}/s" in ROWS[label]
    assert f"{limits.max_continuations} CONTINUATION, {limits.max_block >> 10} KiB" in ROWS[Limit.FIELD_BLOCK]
    assert f"{limits.max_unsent >> 20} MiB" in ROWS[Limit.UNSENT_REPLIES]
    assert f"{limits.max_fields} of them" in ROWS[Limit.HEADER_LIST]
