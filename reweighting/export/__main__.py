"""A trained reward model as a checkpoint that others load without this package.

    python -m reweighting.export --weights_path weights/dreamprm --output exported \
        --for transformers

The folder holds the network with one score row in place of the vocabulary (see
:mod:`.checkpoint`), the processor, the recipe of the prompts (:mod:`.recipe`) and a model card
(:mod:`.card`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..system import terminal
from ..system.checkpoints.finding import BASE_DIRECTORY, base_folder, reason
from ..system.files import FileError, unwritable, write_json, write_text
from ..system.terminal import HelpFormatter, Parser, printable, quiet


def build_parser() -> argparse.ArgumentParser:
    """All flags of the export."""
    parser = Parser(
        prog="python -m reweighting.export",
        description="Write a trained reward model as a checkpoint that others load.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--weights_path", required=True, type=Path, help="directory of a training run")
    add("--output", required=True, type=Path, help="folder to write, new or empty")
    add("--for", required=True, choices=["transformers", "vllm"], dest="target",
        help="which program loads it; vllm: Qwen2-VL and Qwen2.5-VL")  # fmt: skip
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    add(
        "--push_to_hub",
        metavar="NAME",
        help="upload the folder to this model on the Hugging Face hub, made private if it is new",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    quiet()
    _check(parser, arguments)
    try:
        _export(arguments)
        if arguments.push_to_hub:
            push(arguments.output, arguments.push_to_hub)
    except FileError as error:
        terminal.error(error)
    except OSError as error:  # such as a full disk
        terminal.error(f"{arguments.output}: {error.strerror or error}")
    else:
        return 0
    return 2


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program if a flag is unusable."""
    run, output = arguments.weights_path, arguments.output
    if base_folder(run) is None:
        parser.error(f"--weights_path {run} holds no reward model ({BASE_DIRECTORY}/)")
    if problem := unwritable(str(output)):
        parser.error(f"--output {output} cannot be written: {problem}")
    if output.is_dir() and any(output.iterdir()):
        parser.error(f"--output {output} is not empty")
    if arguments.push_to_hub:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(arguments.push_to_hub)
        except HFValidationError as error:
            parser.error(f"--push_to_hub: {error}")


def _export(arguments: argparse.Namespace) -> None:
    """Write the folder and say how it is used."""
    # Takes seconds: --help and a wrong path are answered without it.
    import torch

    from ..reward_model import RewardModel
    from . import card, checkpoint
    from .recipe import RECIPE_FILE, recipe

    run, output = arguments.weights_path, arguments.output
    model = RewardModel.from_pretrained(run, device="cpu").eval()
    made = recipe(model)
    dtype = getattr(torch, arguments.dtype)
    if arguments.target == "transformers":
        checkpoint.write_for_transformers(model, output, dtype)
        use = card.use_in_transformers(made)
    else:
        overrides = checkpoint.OVERRIDES_FILE
        use = card.use_in_vllm(made, checkpoint.VLLM_VERSION, overrides)
        if made["score_head"] == "linear":
            checkpoint.write_for_vllm(model, output, dtype)
        elif arguments.push_to_hub:
            raise FileError(f"{run}: vLLM needs no weights beside the run's own: nothing to upload")
        else:
            found = checkpoint.vllm_overrides(model)
            write_json(output / overrides, found)
            print(f"--hf-overrides '{json.dumps(found)}'")
    write_json(output / RECIPE_FILE, made)
    write_text(output / card.CARD_FILE, card.model_card(run, made, arguments.target, use))
    print(f"written: {printable(output)}; {card.CARD_FILE} there says how it is used")


def push(folder: Path, name: str, api=None) -> None:
    """Upload ``folder`` to the model ``name`` of the Hugging Face hub, made private if it is new.

    Args:
        api: a ``huggingface_hub.HfApi``; by default one with the user's own token.

    Raises:
        FileError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # the hub and what it stands on have their own
        raise FileError(
            f"{name}: could not be uploaded: {reason(error)}; {folder} is written"
        ) from error
    print(f"uploaded to {printable(name)}")


if __name__ == "__main__":
    terminal.exit_with(main)
