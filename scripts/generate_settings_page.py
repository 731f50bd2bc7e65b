"""Writes docs/settings.md from the settings tree; --check compares and exits 1 where they differ."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.config import ENV_PREFIX, Settings
from headrace.settings_sources import leaves, shown_default

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """\
# Settings of `headrace serve`

Written by `scripts/generate_settings_page.py` from `server/headrace/config.py`. A setting comes from its flag, else
from the environment, else from the TOML file of `--config` (or `HEADRACE_CONFIG`), else it is the default. A key
`http2.keepalive_s` is `keepalive_s` under `[http2]` in the file.

| key | flag, environment | default | |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    lines = []
    for setting in leaves(Settings):
        # the one default that depends on the machine
        default = "by the cores" if setting.path == ("inline_below_us",) else shown_default(setting)
        names = f"`{setting.flag}`<br>`{setting.variable(ENV_PREFIX)}`"
        lines.append(f"| `{'.'.join(setting.path)}` | {names} | {default} | {setting.field.description} |\n")
    return HEAD + "".join(lines)


def main() -> int:
    """Writes the page, or compares it."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
