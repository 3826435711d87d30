"""The flags of every command that samples rollouts, and the reasoner that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..records.flags import add_record_flags
from ..system.files import parse_json, read_text
from ..system.server.flags import add_request_flags
from ..system.terminal import real, whole
from .reasoner import CHAIN_INSTRUCTION, Reasoner


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for output, records, sampling, the server and the local checkpoint."""
    add = parser.add_argument
    add("--output", required=True, type=Path, help="file to write")
    add("--journal", type=Path,
        help="finished rollouts; default: the output with the ending .journal.jsonl")  # fmt: skip
    add_record_flags(add)
    add("--max_image_size", type=whole(28), default=512, help="longest side in pixels, as sent")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="name of the reasoner on a server")
    source.add_argument("--policy", help="checkpoint directory or hub name of a local reasoner")
    add("--instruction", type=Path, help="text file to ask with instead of the five-step prompt")
    add("--temperature", type=real(), default=1.0, help="of the sampling")
    add("--max_tokens", type=whole(1), default=1024, help="of a response")
    add("--seed", type=int, default=1, help="another seed gives other samples")
    _add_server_flags(parser)

    add = parser.add_argument_group("local checkpoint").add_argument
    add("--batch_size", type=whole(1), default=8,
        help="rollouts of one question or prefix that are generated together")  # fmt: skip
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16", help="of the checkpoint")


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server (the key is taken from OPENAI_API_KEY)")
    add = group.add_argument
    add("--base_url", help="as http://host:port/v1; default: OPENAI_BASE_URL, else OpenAI")
    add("--continuation", choices=["instruction", "prefill"], default="instruction",
        help="how a prefix is sent: quoted in the user's turn (any server), or as the beginning of "
        "the assistant's turn (vLLM, SGLang)")  # fmt: skip
    add("--request_options", type=_json_object, metavar="JSON",
        help='more fields of every request, as \'{"reasoning_effort": "high"}\'; null leaves one '
        "out")  # fmt: skip
    add_request_flags(add)
    add("--requests_per_minute", type=real(positive=True), help="at most")
    add("--tokens_per_minute", type=real(positive=True), help="at most, in and out")
    add("--price_in", type=real(), default=0.0, help="money per million tokens in")
    add("--price_out", type=real(), default=0.0, help="money per million tokens out")


def _json_object(text: str) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_json_object.__name__ = "JSON object"


def make_reasoner(arguments: argparse.Namespace) -> Reasoner:
    """The reasoner that the flags of :func:`add_sampling_flags` describe.

    Raises:
        FileError: the file of the instruction cannot be read.
        MissingReasonerError: a checkpoint or a device is missing, or an option is wrong.
        UnusableServerError: the server's package is missing, or key or address are unusable.
    """
    instruction = CHAIN_INSTRUCTION
    if arguments.instruction:
        instruction = read_text(arguments.instruction).strip()

    def options(names: str) -> dict[str, Any]:
        return {name: getattr(arguments, name) for name in names.split()}

    common = options("temperature max_tokens max_image_size")
    if arguments.policy:
        from .local_checkpoint import Policy  # torch and transformers take seconds

        own = options("batch_size device precision")
        return Policy(arguments.policy, instruction, **common, **own)
    from .openai_server import Server

    own = options(
        "base_url continuation request_options concurrency timeout max_retries "
        "requests_per_minute tokens_per_minute"
    )
    return Server(arguments.model, instruction, **common, **own)
