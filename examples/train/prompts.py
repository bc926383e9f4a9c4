"""Write held-out questions of every domain as the prompts of a routing report.

    python -m examples.train.prompts examples/tiny-sardine/prompts.json
    sardine-routing -m FILE --chat --prompts examples/tiny-sardine/prompts.json

A question is the first of a held-out item, whose content the training never saw; see `held_out_items`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .domains import DOMAINS
from .evaluate import held_out_items

QUESTIONS = 12  # of each domain


def questions(name: str) -> list[str]:
    """The first different ones of a domain's fixed sample."""
    found = dict.fromkeys(item.turns[0][0] for item in held_out_items(name))
    return list(found)[:QUESTIONS]


def main() -> None:
    """Write the file named by the argument."""
    path = Path(sys.argv[1])
    prompts = {domain.name: questions(domain.name) for domain in DOMAINS}
    path.write_text(json.dumps(prompts, indent=1) + "\n")


if __name__ == "__main__":
    main()
