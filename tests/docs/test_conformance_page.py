import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_conformance_page_lists_the_rows_that_there_are():
    command = [sys.executable, ROOT / "scripts" / "generate_conformance_page.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"run: python scripts/generate_conformance_page.py\n{done.stdout[-2000:]}"
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert "| failed |" not in page
    assert "| not run |" not in page
