"""The page at `/`: one file that needs no other, and may load none."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path


@cache
def page() -> tuple[str, dict[str, str]]:
    """The text of page.html and the header fields to send with it.

    The policy (W3C, Content Security Policy Level 3) names the style and the script by their hashes: nothing else is
    run or loaded, whatever a model is called.
    """
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    allowed = {name: f"'sha256-{_inline(text, name)}'" for name in ("style", "script")}
    policy = (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"style-src {allowed['style']}; script-src {allowed['script']}; img-src data:"
    )
    return text, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }


def _inline(text: str, name: str) -> str:
    """The hash of what stands between the only tags of that name."""
    (content,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
