"""How long a start takes, and how much memory, with millions of records.

    python -m benchmarks.size --records 100000 1000000 3200000

Files like VisualPRM400K-v1.1-Raw as step prefixes are written into a temporary folder: 38 domains,
chains of two to nine steps, four chains a question, an image a question, about a kilobyte a record;
and a meta record for every 32 train records. Every row is a process of its own: the first check of
both files, the second start, data workers, chains (``--batch_by cot``), and a training run of a
tiny model with a weight for each record. Memory is resident: VmHWM and smaps_rollup of Linux.

Where there is no time to check millions of records, ``--repeat 32`` opens a table that has the rows
of the smaller file 32 times, and does what a start does with it apart from recognising the file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

DOMAINS = 38
CHAINS = 4  # of a question
META_SHARE = 32  # train records for each meta record
LINKED = 100  # image files; the others are links to them
WARM, DRAWN = 50, 400  # batches before and while workers are watched
MODEL = "weights/tiny-qwen2-vl"
PARTS = ("first check", "second start", "workers", "chains", "instance table")
REPEATED = "repeated rows"
DRAWS = 20_000  # records drawn from the table of repeated rows


# ---- the files


def words(rng: random.Random, characters: int) -> str:
    """About so many characters of text."""
    text = []
    while characters > 0:
        text.append("".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))))
        characters -= len(text[-1]) + 1
    return " ".join(text)


def chains(count: int, seed: int) -> Iterator[tuple[str, str, str, list[str]]]:
    """Question, image, domain and steps of ``count`` chains."""
    rng = random.Random(seed)
    sentences = [words(rng, 110) for _ in range(5000)]
    for number in range(count):
        question = number // CHAINS
        if number % CHAINS == 0:
            text = f"Question {question}: {rng.choice(sentences)} {rng.choice(sentences)}?"
        steps = [
            f"Step {step}: {rng.choice(sentences)} {rng.choice(sentences)}."
            for step in range(1, rng.randint(2, 9) + 1)
        ]
        yield text, f"images/{question % 300}/{question}.png", f"source_{question % DOMAINS}", steps


def write_files(folder: Path, records: int) -> None:
    """The train and meta files and their images."""
    images, written, rng = set(), 0, random.Random(2)
    with (folder / "train.jsonl").open("w") as file:
        for text, image, domain, steps in chains(records, 0):
            images.add(image)
            prefix = ""
            for step in steps[: records - written]:
                prefix += ("\\n" if prefix else "") + step  # as JSON writes a line feed
                file.write(
                    f'{{"input": "{text}", "add": "{prefix}", "image_path": "{image}", '
                    f'"dataset": "{domain}", "accuracy": {rng.random():.4f}, "id": "{written}"}}\n'
                )
                written += 1
            if written == records:
                break
    with (folder / "meta.json").open("w") as file:
        for number, (text, image, _, steps) in enumerate(chains(records // META_SHARE, 1)):
            images.add(image)
            response = "\n".join(steps) + f"\n\nFinal answer: {number % 4}"
            record = {"input": text, "response": response, "image_path": image}
            record["true_false"] = number % 3 == 0
            file.write(("," if number else "[") + "\n" + json.dumps(record))
        file.write("\n]\n")
    link_images(folder, sorted(images))


def link_images(folder: Path, images: list[str]) -> None:
    """Files for all images: a few pictures with many names."""
    from PIL import Image

    rng = random.Random(0)
    for number in range(LINKED):
        colour = tuple(rng.choices(range(256), k=3))
        Image.new("RGB", (84, 84), colour).save(folder / f"{number}.png")
    for number in range(300):
        (folder / "images" / str(number)).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        os.link(folder / f"{number % LINKED}.png", folder / image)


# ---- one row, in a process of its own


def flags(folder: Path, part: str) -> list[str]:
    """The command line of a row."""
    found = [
        *("--train_json_file", f"{folder}/train.jsonl", "--meta_json_file", f"{folder}/meta.json"),
        *("--image_root", str(folder), "--reward_model", MODEL, "--device", "cpu"),
        *("--weights_path", f"{folder}/run", "--precision", "fp32", "--num_workers", "2"),
        *("--batch_size", "2", "--meta_batch_size", "2", "--iteration_num", "10"),
        *("--unroll_steps", "5"),
    ]
    if part in ("chains", "instance table"):
        found += ["--batch_by", "cot"]
    if part == "instance table":
        found += ["--reweighting", "instance_table", "--meta_lr", "0.5"]
    return found


def measure(folder: Path, part: str, times: int) -> None:
    """Run a row and print what it took as JSON."""
    from reweighting.training.arguments import parse_arguments

    if part == REPEATED:
        write_repeated(folder, times)
    start, found = time.monotonic(), {}
    if part == REPEATED:
        found = use_repeated(folder)
    elif part == "instance table":
        import main as program

        code = program.main(flags(folder, part))
        assert code == 0, code
    else:
        from reweighting.records.dataset import load_data, train_units

        arguments = parse_arguments(flags(folder, part))
        data = load_data(arguments)
        units = train_units(arguments, data.train)
        found["units"] = len(units)
        found["drawn"] = sum(len(unit) for unit in (units[0], units[len(units) // 2], units[-1]))
        if part == "workers":
            found |= growth(arguments, data)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found["wall"] = time.monotonic() - start
    found["cpu"] = sum(usage.ru_utime + usage.ru_stime for usage in used)
    found["peak"] = memory("self", "status", "VmHWM")
    found["peak_of_children"] = used[1].ru_maxrss * 1024
    print("\n" + json.dumps(found))


def growth(arguments: argparse.Namespace, data) -> dict:
    """Memory of the data workers after some batches, and after many."""
    import multiprocessing

    from reweighting.training import build

    arguments.image_cache_mib = 0  # it grows up to its bound, whatever the number of records
    encoder = build.make_encoder(arguments, data.system)
    batches = build.train_batches(
        arguments, data, encoder, build.make_progress(arguments, data, None)
    )

    def of_workers(field: str) -> int:
        workers = multiprocessing.active_children()
        return max(memory(str(worker.pid), "smaps_rollup", field) for worker in workers)

    found = {}
    for number in range(1, WARM + DRAWN + 1):
        next(batches)
        if number in (WARM, WARM + DRAWN):
            when = "warm" if number == WARM else "late"
            found[when] = {field: of_workers(field) for field in ("Rss", "Private_Dirty")}
    return found


def write_repeated(folder: Path, times: int) -> None:
    """The table of the train file with all rows ``times`` times, by another process."""
    if os.fork():
        assert os.wait()[1] == 0
        return
    import numpy as np
    import pyarrow as pa

    [entry] = (path for path in (folder / "cache" / "records").iterdir()
               if names_of(path)["domain"])  # fmt: skip
    (folder / "repeated").mkdir()
    for file in ("images.arrow", "about.json"):
        (folder / "repeated" / file).write_bytes((entry / file).read_bytes())
    for file, numbers in (("rows.arrow", ("record",)), ("links.arrow", ("text", "extends"))):
        table = pa.ipc.open_file(str(entry / file)).read_all()
        size = len(table)
        with pa.ipc.new_file(str(folder / "repeated" / file), table.schema) as writer:
            for time_ in range(times):
                for batch in table.to_batches():
                    for name in numbers:
                        old = batch.column(name).to_numpy()
                        new = np.where(old < 0, old, old + time_ * size).astype(np.int32)
                        place = batch.schema.get_field_index(name)
                        batch = batch.set_column(place, name, pa.array(new))
                    writer.write_batch(batch)
    os._exit(0)


def names_of(entry: Path) -> dict[str, list[str]]:
    """The names of a kept table."""
    return json.loads((entry / "about.json").read_text())["names"]


def use_repeated(folder: Path) -> dict:
    """What a start asks of the train records, and memory before and after many are drawn."""
    from reweighting.records.tables import Table, TrainRecords

    names = names_of(folder / "repeated")
    train = TrainRecords(Table.open(folder / "repeated", names))
    domains, _, _ = train.named("domain"), train.mean_labels().mean(), train.counts("images")
    found = {"rows": len(train), "domains": len(domains), "chains": len(train.chains)}
    rng = random.Random(0)
    for when, draws in (("warm", DRAWS // 20), ("late", DRAWS)):
        for _ in range(draws):
            assert train[rng.randrange(len(train))].prompts
        found[when] = {
            field: memory("self", "smaps_rollup", field) for field in ("Rss", "Private_Dirty")
        }
    return found


def memory(process: str, file: str, name: str) -> int:
    """Bytes that a line of a file in /proc says."""
    for line in Path("/proc", process, file).read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


# ---- the table


def row(folder: Path, part: str, code: Path, times: int = 1) -> dict:
    """What :func:`measure` finds with the program in ``code``."""
    environment = os.environ | {"PYTHONPATH": str(code), "DREAMPRM_CACHE": str(folder / "cache")}
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    command += ["--repeat", str(times)]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def line(records: int, part: str, found: dict) -> str:
    """A row of the table in Markdown."""
    if "failed" in found:
        return f"| {records:,} | {part} | failed: {found['failed']} | | | |"
    gib, mib = 2**30, 2**20
    cells = [
        f"{records:,}",
        part,
        f"{found['wall']:.0f}",
        f"{found['cpu']:.0f}",
        f"{found['peak'] / gib:.2f}",
        "",
    ]
    if part == "first check":
        cells[-1] = f"checking processes at most {found['peak_of_children'] / gib:.2f} GiB each"
    elif part == "chains":
        cells[-1] = f"{found['units']:,} chains"
    elif part in ("workers", REPEATED):
        warm, late = found["warm"], found["late"]
        rss, own = (
            f"{warm[name] / mib:.0f} → {late[name] / mib:.0f} MiB"
            for name in ("Rss", "Private_Dirty")
        )
        after = f"a worker after {WARM} → {WARM + DRAWN} batches"
        if part == REPEATED:
            after = f"{found['chains']:,} chains; after {DRAWS // 20:,} → {DRAWS:,} records"
        cells[-1] = f"{after}: resident {rss}, its own {own}"
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--records", type=int, nargs="+", default=[100_000], help="sizes of the train file")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="rows to measure")
    add("--code", type=Path, default=Path.cwd(), help="checkout whose program is measured")
    add("--repeat", type=int, default=0, help="open a table with so many times the rows, too")
    add("--part", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measure(arguments.folder, arguments.part, arguments.repeat)
        return
    print(
        "| records | part | wall (s) | CPU (s) | peak memory (GiB) | |\n|---|---|---|---|---|---|"
    )
    for records in arguments.records:
        with tempfile.TemporaryDirectory(prefix="size") as name:
            folder = Path(name)
            write_files(folder, records)
            size = (folder / "train.jsonl").stat().st_size / 1e9
            print(f"| {records:,} | the train file has {size:.2f} GB | | | | |", flush=True)
            for part in arguments.parts:
                print(line(records, part, row(folder, part, arguments.code)), flush=True)
            if arguments.repeat:
                found = row(folder, REPEATED, arguments.code, arguments.repeat)
                print(line(records * arguments.repeat, REPEATED, found), flush=True)


if __name__ == "__main__":
    main()
