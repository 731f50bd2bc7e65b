import re
import subprocess
import sys
from pathlib import Path

from e2e.onnx_models import scale, write
from e2e.server_process import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"


def test_the_metrics_page_is_what_the_collectors_say():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_metrics_page.py", "--check"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, f"run: python scripts/generate_metrics_page.py\n{done.stderr}"


def test_whatever_a_server_shows_is_on_the_page(tmp_path):
    write(tmp_path, "m", scale(2, "N", "D"))
    with Server(tmp_path) as server:
        text = server.get("/metrics")[1]

    shown = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)}
    listed = {name.removesuffix("_total") for name in re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)}
    assert {name for name in shown if not name.startswith(("process_", "python_"))} <= listed
    assert len(shown & listed) > 40
