"""A headless Chromium for pages that we write: for tests, and to take a page's picture.

python tests/cli/browser.py PAGE.html OUT.png [--dark] [--width N] [--height N] [--hover SELECTOR]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """Why no browser can be had here; None if one can."""
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is installed: apt install chromium"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright, which drives it, is not installed: pip install playwright"
    return None


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """The installed Chromium; its sandbox does not run as root."""
    from playwright.sync_api import sync_playwright

    path = next(p for p in map(shutil.which, NAMES) if p)
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=path, args=flags)
        try:
            yield running
        finally:
            running.close()


def main() -> None:
    """Takes the picture."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("page", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--dark", action="store_true")
    p.add_argument("--width", type=int, default=1280)
    p.add_argument("--height", type=int, default=0, help="0: the whole page")
    p.add_argument("--hover", metavar="SELECTOR")
    args = p.parse_args()
    with browser() as chromium:
        page = chromium.new_page(
            viewport={"width": args.width, "height": args.height or 900},
            color_scheme="dark" if args.dark else "light",
        )
        page.goto(args.page.resolve().as_uri())
        if args.hover:
            page.locator(args.hover).first.hover()
        page.screenshot(path=args.out, full_page=not args.height)


if __name__ == "__main__":
    main()
