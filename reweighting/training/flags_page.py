"""The page about the flags of ``main.py``, written from their parser, without torch.

python -m reweighting.training.flags_page > docs/flags.md
"""

from __future__ import annotations

import argparse
import re

from .flags import build_parser

HEAD = """# Flags of `main.py`

`python main.py --help` says the same. If a flag is given twice, the last one counts; flags beside
`--preset` overrule it. This page is written from the code: change the help text there, then run
`python -m reweighting.training.flags_page > docs/flags.md`.
"""


def page() -> str:
    """Every group of flags: a sentence, and a table of flags, defaults and meanings."""
    parts = [HEAD]
    for group in build_parser()._action_groups[2:]:  # the first two are argparse's own: --help
        rows = [f"| {' | '.join(map(_text, _cells(action)))} |" for action in group._group_actions]
        table = ["| flag | default | meaning |", "|---|---|---|", *rows]
        lines = [f"## {group.title.capitalize()}", "", _text(group.description), "", *table, ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _cells(action: argparse.Action) -> tuple[str, str, str]:
    """What a row says: the names of a flag, its default, and its help text with the choices."""
    meaning, _, described = action.help.partition(" (default: ")
    default = described.removesuffix(")")
    if action.required:
        default = "required"
    elif action.nargs == 0:
        default = "off"
    elif action.default is not None:
        values = action.default if isinstance(action.default, list) else [action.default]
        default = " ".join(f"`{v:g}`" if isinstance(v, float) else f"`{v}`" for v in values)
    if action.choices:
        meaning += f". Choices: {', '.join(f'`{choice}`' for choice in action.choices)}"
    return " ".join(action.option_strings), default, meaning


def _text(text: str) -> str:
    """``text`` as Markdown in a table's cell: flags as code, signs that mean something escaped."""
    return re.sub(r"[\\|*<]", r"\\\g<0>", re.sub(r"--\w+", r"`\g<0>`", text))


if __name__ == "__main__":
    print(page(), end="")
