"""Train a multimodal process reward model with learned domain weights (DreamPRM).

The paper's run, on one 80 GB GPU:

    python main.py --train_json_file data/train.json --meta_json_file data/meta.json \
        --weights_path weights/dreamprm

Minutes on a laptop:

    make demo
"""

from __future__ import annotations

import sys

from reweighting import terminal
from reweighting.training.arguments import parse_arguments  # without torch: --help comes at once

BETTY_INSTALL = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


def main(argv: list[str] | None = None) -> int:
    """Parse, check, train; returns the process's exit code."""
    arguments = parse_arguments(argv)
    terminal.quiet()
    try:
        import betty.problems  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith("betty"):
            raise
        # Its wheel refuses Python 3.11 and later, on which it runs, and "betty" on the package
        # index is another program.
        print(f"Betty is not installed. Install it with\n\n    {BETTY_INSTALL}\n", file=sys.stderr)
        return 2

    from reweighting.bilevel.problems import NonFiniteLoss
    from reweighting.files import DirectoryLock, FileError
    from reweighting.records.chains import describe_meta
    from reweighting.records.dataset import load_data
    from reweighting.records.problems import DataError
    from reweighting.training import engine as training
    from reweighting.training.build import SetupError, check_start, make_encoder
    from reweighting.training.dry_run import advice, print_plan

    try:
        data = load_data(arguments)
        for note in [*data.warnings, *advice(arguments, data)]:
            terminal.warning(note)
        encoder = make_encoder(arguments, data.system)
        folder, _ = training.checkpoint_to_resume(arguments)
        for note in check_start(arguments, data, folder):
            print(note)
        if arguments.dry_run:
            training.check_resume(arguments, data)
            print_plan(arguments, data, encoder)
            return 0
        if data.meta:
            print(f"{terminal.printable(arguments.meta_json_file)}: {describe_meta(data.meta)}")
        with DirectoryLock(arguments.weights_path):
            return training.ReweightingEngine(arguments, data, encoder).run()
    except (DataError, SetupError, FileError) as error:
        for note in getattr(error, "notes", []):
            terminal.warning(note)
        terminal.error(error)
        return 2
    except OSError as error:  # such as a disk that is full
        where = f"{error.filename}: " if error.filename else ""
        terminal.error(f"{where}{error.strerror or error}; the last checkpoint is left as it was")
        return 1
    except NonFiniteLoss as error:
        print(file=sys.stderr)  # behind the progress line
        terminal.error(f"{error}; the last checkpoint is left as it was")
        return 1


if __name__ == "__main__":
    sys.exit(main())
