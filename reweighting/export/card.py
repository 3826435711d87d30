"""The model card: what a run was trained on, what it learned, and how its scores are had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..system.checkpoints.finding import (
    ARGUMENTS_FILE,
    AVERAGE_JSON,
    DOMAIN_JSON,
    EVALUATIONS_FILE,
    INSTANCE_PARQUET,
    METRICS_FILE,
    locate,
)
from ..system.checkpoints.opening import load_object
from ..system.checkpoints.weight_tables import read_named_weights
from ..system.files import complete_lines, is_number
from ..system.markdown import cell, table
from .recipe import QUESTION, RECIPE_FILE, STEPS
from .vllm import request

CARD_FILE = "README.md"
_TAGS = ["process-reward-model", "reward-model", "multimodal", "dreamprm"]
# Arguments of the run that name its data, and numbers of its last step.
_DATA = ("train_json_file", "meta_json_file", "eval_candidates", "eval_steps")
_STEP_METRICS = {"auroc": "AUROC", "macro_f1": "macro-F1 at 0.5"}
_METRICS = ("iteration", "epoch", "loss", "meta_loss", "meta_loss_at_chance")
_MEANING = "how much each counted in training; 1 is the average"

_SCRIPT = """\
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoProcessor

FOLDER = "."  # this folder, or its name on the hub
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(FOLDER)

image = Image.open("image.png").convert("RGB")
question = {question}
steps = {steps}
{system}
scale = {longest_side} / max(image.size)
if scale < 1:
    size = int(image.width * scale), int(image.height * scale)
    image = image.resize(size, Image.Resampling.LANCZOS)


def turn(role, text):
    return {{"role": role, "content": [{{"type": "text", "text": text}}]}}


log_odds = []
for count in range(1, len(steps) + 1):
{messages}
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[prompt], images=[image], add_special_tokens=False, return_tensors="pt"
    )
    with torch.no_grad():
        log_odds.append(model(**inputs).logits[0, 0].item())
z = torch.tensor(log_odds)
print("after each step", torch.sigmoid(z).tolist())
print("whole chain", torch.sigmoid(z.mean()).item())
"""
_MESSAGES = {
    "linear": """\
    messages = [turn("user", question + "\\n\\n" + "\\n".join(steps[:count]))]
    messages[0]["content"].insert(0, {"type": "image"})""",
    "plus_minus": """\
    messages = [turn("system", SYSTEM), turn("user", question + "\\n\\n" + steps[0])]
    messages[1]["content"].insert(0, {"type": "image"})
    for step in steps[1:count]:
        messages += [turn("assistant", "+"), turn("user", step)]""",
}

_TRANSFORMERS = """\
Plain transformers is enough. The class of the model is in `modeling_dreamprm.py`, which
`trust_remote_code=True` runs, so read it first.

```python
{script}```
"""
_VLLM_LINEAR = """\
Written for vLLM {version} after its loader code. **It was not run there.**

```bash
vllm serve . --runner pooling --convert classify
```

`POST /classify` takes the turns of a prompt. In the answer `probs` holds z, and with
`use_activation` true or left out V = sigmoid(z). The score is read at the last token.

```json
{request}
```
"""
_VLLM_LABELS = """\
vLLM {version} needs no other weights: with these overrides it reads the two labels off the base
model of the run. This was written after its loader code. **It was not run there.** `RUN` is the
folder of the run.

```bash
vllm serve RUN/base_model --runner pooling --convert classify --hf-overrides "$(cat {overrides})"
```

`POST /pooling` takes the turns of a prompt. In the answer `data` holds z, and with `use_activation`
true or left out V = sigmoid(z). The score is read at the last token. (A server that is started with
`--pooler-config.task token_classify` gives a score for every token, of which the last one counts,
but computes every prompt anew.) Where `min_pixels` and `max_pixels` in `reward.json` are not those
of the processor in `RUN/base_model`, the server must be told them.

```json
{request}
```
"""

_BODY = """\
# {name}

A process reward model: it reads an image, a question and the first steps of a chain of thought, and
gives the log-odds z that these steps lead to a right answer (score head `{score_head}`).
V = sigmoid(z) is a probability. The score of a chain is the mean of z over its steps. It was
trained with an open implementation of DreamPRM.

## Use

{use}
`{recipe}` says exactly how a prompt is made, with an example as text. The processor resizes images
whose sides are not whole visual tokens, and may round a colour differently than in training.

## Training

{data}

### Learned weights

{weights}

### Metrics

{metrics}

### Arguments

{arguments}

## Intended use

Ranking several responses to the same question about an image, and finding the step at which a chain
goes wrong. Scores of different questions are not calibrated against each other.

## Limits

- The scores are only as good as the labels of the training data, and mean little for other kinds of
  images, questions or languages.
- A high score is no proof that an answer is right. Do not use it as the only check where errors do
  harm.
- A model that is trained against these scores will find their faults.
- The licences of the base model and of the data apply to these weights.

## Citation

```bibtex
@misc{{cao2025dreamprm, year={{2025}}, eprint={{2505.20241}}, archivePrefix={{arXiv}},
  title={{DreamPRM: Domain-Reweighted Process Reward Model for Multimodal Reasoning}},
  author={{Qi Cao and Ruiyi Wang and Ruiyi Zhang and Sai Ashish Somayajula and Pengtao Xie}}}}
@misc{{cao2025dreamprm15, year={{2025}}, eprint={{2509.05542}}, archivePrefix={{arXiv}},
  title={{DreamPRM-1.5: Unlocking the Potential of Each Instance for Multimodal Process Reward
    Model Training}},
  author={{Qi Cao and Pengtao Xie}}}}
```
"""


def model_card(run: Path, made: dict[str, Any], library: str, use: str) -> str:
    """The text of ``README.md``.

    Args:
        run: the ``--weights_path`` of a run.
        made: the recipe of its prompts, see :func:`~.recipe.recipe`.
        library: the program that loads the checkpoint.
        use: how the checkpoint is used: :func:`use_in_transformers` or :func:`use_in_vllm`.

    Raises:
        CheckpointError: a file of the run is damaged.
    """
    folder = locate(run)
    known = folder / ARGUMENTS_FILE
    arguments = load_object(known) if known.is_file() else {}
    base = arguments.get("reward_model")
    data = ModelCardData(
        base_model=base if _is_hub_name(base) else None,
        library_name=library,
        pipeline_tag="image-text-to-text",
        tags=_TAGS,
    )
    body = _BODY.format(
        name=run.resolve().name,
        score_head=made["score_head"],
        use=use,
        recipe=RECIPE_FILE,
        data=_data(arguments),
        weights=_weights(folder),
        metrics=_metrics(run),
        arguments=_arguments(arguments),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def use_in_transformers(made: dict[str, Any]) -> str:
    """A script that scores one question, for the card."""
    script = _SCRIPT.format(
        question=json.dumps(QUESTION),
        steps=json.dumps(STEPS),
        longest_side=made["image"]["longest_side"],
        system="" if made["system"] is None else f"SYSTEM = {json.dumps(made['system'])}\n",
        messages=_MESSAGES[made["score_head"]],
    )
    return _TRANSFORMERS.format(script=script)


def use_in_vllm(made: dict[str, Any], version: str, overrides: str) -> str:
    """The commands and a request for vLLM, for the card.

    Args:
        version: of vLLM.
        overrides: the file that holds them, which only ``plus_minus`` needs.
    """
    turns = made["example"]["prompts"][-1]["messages"]
    text = _VLLM_LABELS if made["score_head"] == "plus_minus" else _VLLM_LINEAR
    request_text = json.dumps(
        request(turns, ["https://example.org/image.png"]), indent=2, ensure_ascii=False
    )
    return text.format(version=version, overrides=overrides, request=request_text)


def _is_hub_name(base: Any) -> bool:
    if not isinstance(base, str) or base.count("/") != 1 or Path(base).exists():
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def _data(arguments: dict[str, Any]) -> str:
    rows = [[f"`{name}`", cell(arguments[name])] for name in _DATA if arguments.get(name)]
    return table(["data", "file"], rows) if rows else "The run does not say on which data."


def _weights(folder: Path) -> str:
    """The learned weights of domains, or those of records averaged over each domain."""
    if (folder / DOMAIN_JSON).is_file():
        last = read_named_weights(folder / DOMAIN_JSON)
        average = folder / AVERAGE_JSON
        means = read_named_weights(average) if average.is_file() else {}
        rows = [
            [cell(name), _number(weight), _number(means.get(name))]
            for name, weight in sorted(last.items(), key=lambda item: -item[1])
        ]
        head = ["domain", "weight", "average over the last quarter of training"]
        return f"Of domains: {_MEANING}.\n\n{table(head, rows)}"
    if (folder / INSTANCE_PARQUET).is_file():
        from pyarrow import parquet

        records = parquet.read_table(folder / INSTANCE_PARQUET, columns=["domain", "weight"])
        kinds = ("count", "mean", "min", "max")
        grouped = records.group_by("domain").aggregate([("weight", kind) for kind in kinds])
        rows = [
            [cell(row["domain"])] + [_number(row[f"weight_{kind}"]) for kind in kinds]
            for row in sorted(grouped.to_pylist(), key=lambda row: row["domain"])
        ]
        head = ["domain", "records trained with", "mean weight", "smallest", "largest"]
        return f"Of records: {_MEANING}.\n\n{table(head, rows)}"
    return "None: every record counted the same, or the run does not say."


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _metrics(run: Path) -> str:
    """Those of the last training step, and the last on validation candidates and steps."""
    steps = complete_lines(run / METRICS_FILE)
    evaluations = complete_lines(run / EVALUATIONS_FILE)
    last = steps[-1] if steps else {}
    rows = [[f"`{name}`", f"{last[name]:.4g}"] for name in _METRICS if is_number(last.get(name))]
    if evaluations:
        found = evaluations[-1]
        if "accuracy" in found:
            share = f"share of right picks on {found['questions']} validation questions"
            rows.append([share, f"{found['accuracy']:.4g}"])
        for name, value in found.get("steps", {}).items():
            if name in _STEP_METRICS and is_number(value):
                rows.append([f"{_STEP_METRICS[name]} of validation steps", f"{value:.4g}"])
    if not rows:
        return "None were recorded."
    return f"At the end of training, not of a benchmark.\n\n{table(['metric', 'value'], rows)}"


def _arguments(arguments: dict[str, Any]) -> str:
    rows = [[f"`{name}`", cell(value)] for name, value in arguments.items() if value is not None]
    return table(["argument", "value"], rows) if rows else "The run does not say."
