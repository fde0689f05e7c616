"""Writes the picture of the server's page: one question at three strengths, in headless Chromium.

dual-head serve demo-out/both &
python scripts/page_picture.py http://127.0.0.1:8000 docs/serve.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import open_browser
from servers import until

STRENGTHS = (2, 1)  # of the first guides
QUESTION = "how do i bake bread ?"


def main() -> None:
    """Ask on the page of a running server, and write what it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args()
    with open_browser() as browser:
        browser.open(args.url)
        for i, strength in enumerate(STRENGTHS):
            browser.run(
                f"const range = document.querySelectorAll('.guide input[type=range]')[{i}];"
                f"if (range) {{ range.value = {strength}; range.oninput() }}"
            )
        browser.run("document.getElementById('tokens').value = 40")
        browser.type("#message", QUESTION)
        browser.click("#send")
        until(lambda: "tokens in" in browser.text("#state"), seconds=120)
        args.picture.write_bytes(browser.picture())


if __name__ == "__main__":
    main()
