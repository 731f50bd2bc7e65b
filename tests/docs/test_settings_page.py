import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_what_the_settings_tree_says():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "generate_settings_page.py", "--check"], check=False)

    assert done.returncode == 0, "run: python scripts/generate_settings_page.py"
