"""Train a multimodal process reward model with learned domain weights (DreamPRM).

The paper's run, on one 80 GB GPU:

    python main.py --train_json_file data/train.json --meta_json_file data/meta.json \
        --weights_path weights/dreamprm

Minutes on a laptop:

    make demo
"""

from __future__ import annotations

import sys

BETTY_INSTALL = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


def main(argv: list[str] | None = None) -> int:
    """Parse, check, train; returns the process's exit code."""
    try:
        import betty.problems  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith("betty"):
            raise
        # Its wheel refuses Python 3.11 and later, on which it runs, and "betty" on the package
        # index is another program.
        print(f"Betty is not installed. Install it with\n\n    {BETTY_INSTALL}\n", file=sys.stderr)
        return 2

    from reweighting.arguments import parse_arguments

    arguments = parse_arguments(argv)

    from reweighting import terminal, training
    from reweighting.construction import SetupError, make_encoder
    from reweighting.plan import print_plan
    from reweighting.problems import NonFiniteLoss
    from reweighting.run_data import load_data
    from reweighting.samples import DataError, describe_meta

    training.quiet()
    try:
        data = load_data(arguments)
        for note in data.warnings:
            terminal.warning(note)
        encoder = make_encoder(arguments, data.system)
        if arguments.dry_run:
            training.check_resume(arguments, data)
            print_plan(arguments, data, encoder)
            return 0
        if data.meta:
            print(f"{arguments.meta_json_file}: {describe_meta(data.meta)}")
        return training.ReweightingEngine(arguments, data, encoder).run()
    except (DataError, SetupError) as error:
        for note in getattr(error, "notes", []):
            terminal.warning(note)
        terminal.error(error)
        return 2
    except NonFiniteLoss as error:
        print(file=sys.stderr)  # behind the progress line
        terminal.error(f"{error}; the last checkpoint is left as it was")
        return 1


if __name__ == "__main__":
    sys.exit(main())
