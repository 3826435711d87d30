"""Many prefixes in one forward pass: token tries packed into a single sequence.

The prefixes of a chain of thought share the images, the question and the earlier steps; the
candidates of one question share images and question. Prompts that show the same images (or none,
and ask the same) therefore form a *trie* of token ids: what is equal is computed once, and every
prompt keeps its own tail (the end of the user turn and the start of the assistant's). A token
attends to its ancestors only and has the position it would have in its own prompt, so every score
equals that of a separate forward pass.

Tries of different images follow one another without padding; attention runs within each of them,
so its cost per trie does not grow with the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .encoder import EncodedPrompts


@dataclass
class Tree:
    """One trie in the packed sequence."""

    start: int  # first token in the packed sequence
    end: int
    longest_prompt: list[int]  # token ids of its deepest prompt, which has every depth's position
    branches: list[tuple[int, int]]  # see build_trie
    ends: list[int]  # the nodes where prompts end, each once, in order
    _masks: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def is_chain(self) -> bool:
        """Whether every token sees all tokens before it."""
        return all(parent == first - 1 for parent, first, _ in _spans(self.branches))

    def path(self, node: int) -> list[int]:
        """The nodes from a root down to ``node``."""
        found: list[int] = []
        for parent, first, end in reversed(_spans(self.branches)):
            if first <= node < end:
                found = [*range(first, node + 1), *found]
                node = parent
        return found

    def mask(
        self, dtype: torch.dtype, device: torch.device | str, ends: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """What attention adds to its scores, ``[1, 1, n, n]``; None for a plain causal chain.

        With ``ends``, nodes as a tensor on the device, only their rows; None for one that sees all.
        All layers get the same tensor, which is kept once for the backward pass.
        """
        if self.is_chain and (ends is None or len(ends) == 1):
            return None
        if (dtype, device) not in self._masks:
            zero = torch.zeros((), dtype=dtype, device=device)
            added = torch.where(ancestors(self.branches, device), zero, float("-inf"))
            self._masks[dtype, device] = added[None, None]
        whole = self._masks[dtype, device]
        return whole if ends is None else whole[:, :, ends]


class TreeBatch:
    """Trees as the rows of one rectangle, padded at their ends."""

    def __init__(self, trees: list[Tree], device: torch.device) -> None:
        self.trees = trees
        starts = torch.tensor([tree.start for tree in trees])
        tokens, _ = rows_of([tree.end - tree.start for tree in trees], starts)
        self.longest = tokens.shape[1]
        self.tokens = tokens.to(device, non_blocking=True)  # [trees, longest]
        self._masks: dict[tuple, torch.Tensor] = {}

    def mask(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """What attention adds to its scores, ``[trees, 1, longest, longest]``.

        None if plain causal attention does: then no token sees the padding, which comes last.
        """
        if all(tree.is_chain for tree in self.trees):
            return None
        if (dtype, device) not in self._masks:
            sees = torch.zeros(len(self.trees), self.longest, self.longest, dtype=torch.bool)
            sees[:, :, 0] = True  # for the padding, which must see something
            for row, tree in zip(sees, self.trees, strict=True):
                length = tree.end - tree.start
                row[:length, :length] = ancestors(tree.branches)
            sees = sees.to(device, non_blocking=True)
            zero = torch.zeros((), dtype=dtype, device=device)
            self._masks[dtype, device] = torch.where(sees, zero, float("-inf"))[:, None]
        return self._masks[dtype, device]


def rows_of(
    lengths: list[int], starts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of tokens as rows of one rectangle, padded to a multiple of eight.

    Fused kernels copy masks of other widths.

    Args:
        starts: the first token of every run; without them one follows the other.

    Returns:
        the tokens, ``[runs, longest]``, where a run's first token stands for the padding, and
        where they are no padding.
    """
    ends = torch.tensor(lengths)
    if starts is None:
        starts = ends.cumsum(0) - ends
    columns = torch.arange(-(-max(lengths) // 8) * 8)
    within = columns < ends[:, None]
    return starts[:, None] + columns * within, within


class ByValue:
    """Mixed into a batch: small tensors are pickled by value, only images go to shared memory.

    Each tensor in shared memory takes an open file and a handshake between two processes. It buys
    2 ms of the training process's CPU time for a batch of one record and 5 ms for 8, and 64 records
    pass through 17 open files, where plain pickling fails at a limit of 256.
    """

    def __getstate__(self) -> dict:
        return {name: _plain(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            array = isinstance(value, np.ndarray)
            setattr(self, name, torch.from_numpy(value) if array else value)


def _plain(value):
    small = isinstance(value, torch.Tensor) and value.device.type == "cpu"
    return value.numpy() if small else value


@dataclass
class PackedTrees(ByValue):
    """A batch of R prompts as one sequence of N tokens.

    ``read_outs[r]`` is where prompt r ends. Prompts keep the order in which they were given.
    """

    input_ids: torch.Tensor  # [N]
    depths: torch.Tensor  # [N], index of the token in its own prompt
    read_outs: torch.Tensor  # [R]
    ends: torch.Tensor  # [E], the distinct read-outs in order
    trees: list[Tree]
    images: list[dict[str, torch.Tensor]]  # for every tree, the model's inputs for its images
    prompt_tokens: int  # tokens that separate forward passes would take
    _batches: dict = field(default_factory=dict, init=False, repr=False)

    def side_by_side(self, similar: float) -> tuple[list[TreeBatch], torch.Tensor]:
        """Trees of similar length in batches.

        Args:
            similar: of a batch, the shortest over the longest tree, at least.

        Returns:
            the batches, and for every token of the packed sequence its place in the rows of all
            batches one after another, ``[N]``.
        """
        if similar not in self._batches:
            groups: list[list[Tree]] = []
            longest = 0
            for tree in sorted(self.trees, key=lambda tree: tree.start - tree.end):
                length = tree.end - tree.start
                if not groups or length < similar * longest:
                    groups.append([])
                    longest = length
                groups[-1].append(tree)
            device = self.input_ids.device
            batches = [TreeBatch(group, device) for group in groups]
            places, used = torch.zeros(self.trees[-1].end, dtype=torch.long), 0
            for batch in batches:
                for tree in batch.trees:
                    length = tree.end - tree.start
                    places[tree.start : tree.end] = torch.arange(used, used + length)
                    used += batch.longest
            self._batches[similar] = batches, places.to(device, non_blocking=True)
        return self._batches[similar]

    def to(self, device: torch.device | str) -> PackedTrees:
        """A copy on ``device``, which is not waited for if the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackedTrees:
        """A copy in page-locked memory, for the data loader: copies then overlap with compute."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, place: Callable[[torch.Tensor], torch.Tensor]) -> PackedTrees:
        return replace(
            self,
            input_ids=place(self.input_ids),
            depths=place(self.depths),
            read_outs=place(self.read_outs),
            ends=place(self.ends),
            # Sizes and grids are read by Python, so they stay on the CPU.
            images=[
                {name: place(v) if v.is_floating_point() else v for name, v in image.items()}
                for image in self.images
            ],
        )

    def __getstate__(self) -> dict:
        """Each input of all images is sent as one tensor, and split again on arrival."""
        columns = {}
        for name, together in self.image_inputs().items():
            if not together.is_floating_point():
                together = _plain(together)
            lengths = [len(image[name]) if image else 0 for image in self.images]
            columns[name] = (together, lengths)
        return super().__getstate__() | {"images": columns}

    def __setstate__(self, state: dict) -> None:
        images: list[dict[str, torch.Tensor]] = [{} for _ in state["trees"]]
        for name, (together, lengths) in state["images"].items():
            values = torch.as_tensor(together).split(lengths)
            for image, value in zip(images, values, strict=True):
                if len(value):
                    image[name] = value
        super().__setstate__(state | {"images": images})

    def image_inputs(self) -> dict[str, torch.Tensor]:
        """The model's inputs for all images, concatenated; empty if no tree has any."""
        shown = [image for image in self.images if image]
        return {name: torch.cat([image[name] for image in shown]) for name in (shown or [{}])[0]}

    def tree_of_prompt(self) -> torch.Tensor:
        """The number of the tree of every prompt, ``[R]``."""
        ends = torch.tensor([tree.end for tree in self.trees], device=self.read_outs.device)
        return torch.bucketize(self.read_outs, ends, right=True)

    def part(self, numbers: Sequence[int]) -> PackedTrees:
        """Only the trees with these ``numbers``; their prompts stay in order."""
        tree_of_prompt = self.tree_of_prompt()
        kept, end, read_outs = [], 0, torch.zeros_like(self.read_outs)
        for number in numbers:
            tree = self.trees[number]
            start, end = end, end + tree.end - tree.start
            kept.append(replace(tree, start=start, end=end))
            read_outs[tree_of_prompt == number] = start - tree.start
        tokens = torch.cat([torch.arange(self.trees[n].start, self.trees[n].end) for n in numbers])
        chosen = torch.isin(tree_of_prompt, torch.tensor(numbers, device=tree_of_prompt.device))
        return PackedTrees(
            input_ids=self.input_ids[tokens],
            depths=self.depths[tokens],
            read_outs=(self.read_outs + read_outs)[chosen],
            ends=_ends(kept).to(self.ends.device),
            trees=kept,
            images=[self.images[number] for number in numbers],
            prompt_tokens=int((self.depths[self.read_outs[chosen]] + 1).sum()),
        )

    def separate_prompts(self) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Token ids and image inputs of every prompt, for separate forward passes."""
        numbers = self.tree_of_prompt().tolist()
        for number, read_out in zip(numbers, self.read_outs.tolist(), strict=True):
            tree = self.trees[number]
            tokens = self.input_ids[tree.start : tree.end]
            yield tokens[tree.path(read_out - tree.start)], self.images[number]


def pack(groups: Sequence[EncodedPrompts]) -> PackedTrees:
    """Pack prompts into tries, one per distinct list of images.

    Args:
        groups: prompts with their images. Groups with the same ``image_key`` share a trie, so
            neither the images nor a common beginning is computed twice.
    """
    by_image: dict[str, list[tuple[int, list[int]]]] = {}
    images = []
    prompt_count = 0
    for group in groups:
        if group.image_key not in by_image:
            by_image[group.image_key] = []
            images.append(group.images)
        for token_ids in group.token_ids:
            by_image[group.image_key].append((prompt_count, token_ids))
            prompt_count += 1

    input_ids, depths, trees = [], [], []
    read_outs = torch.empty(prompt_count, dtype=torch.long)
    for prompts in by_image.values():
        start = len(input_ids)
        nodes, tree_depths, paths, branches = build_trie([token_ids for _, token_ids in prompts])
        for (index, _), path in zip(prompts, paths, strict=True):
            read_outs[index] = start + path[-1]
        input_ids += nodes
        depths += tree_depths
        longest = max((token_ids for _, token_ids in prompts), key=len)
        ends = sorted({path[-1] for path in paths})
        trees.append(Tree(start, len(input_ids), longest, branches, ends))
    return PackedTrees(
        input_ids=torch.tensor(input_ids),
        depths=torch.tensor(depths),
        read_outs=read_outs,
        ends=_ends(trees),
        trees=trees,
        images=[shown.inputs for shown in images],
        prompt_tokens=sum(len(ids) for group in groups for ids in group.token_ids),
    )


def build_trie(
    prompts: list[list[int]],
) -> tuple[list[int], list[int], list[list[int]], list[tuple[int, int]]]:
    """The trie of token sequences, with its nodes in an order where parents come first.

    Each prompt has been tokenised as a whole and shares exactly what is equal from the first token
    on, so a tokenizer that merges characters across a step boundary does no harm.

    Returns:
        the token id of every node, its depth, the node numbers of every prompt, and the branches
        in the order of their nodes: the node each grows from (-1 for a root) and its length.
    """
    nodes: list[int] = []
    depths: list[int] = []
    paths: list[list[int]] = []
    branches: list[tuple[int, int]] = []
    for prompt in prompts:
        shared: list[int] = []
        for number, path in enumerate(paths):
            length = _common_length(prompt, prompts[number])
            if length > len(shared):
                shared = path[:length]
        first_new = len(nodes)
        nodes += prompt[len(shared) :]
        depths += range(len(shared), len(prompt))
        if len(nodes) > first_new:
            branches.append((shared[-1] if shared else -1, len(nodes) - first_new))
        paths.append(shared + list(range(first_new, len(nodes))))
    return nodes, depths, paths, branches


def ancestors(branches: list[tuple[int, int]], device: torch.device | str = "cpu") -> torch.Tensor:
    """Bool ``[nodes, nodes]``: the row's node sees itself and its ancestors."""
    count = sum(length for _, length in branches)
    sees = torch.zeros(count, count, dtype=torch.bool, device=device)
    for parent, first, end in _spans(branches):
        if parent >= 0:
            sees[first:end] = sees[parent]
        new = torch.ones(end - first, end - first, dtype=torch.bool, device=device)
        sees[first:end, first:end] = new.tril()
    return sees


def _ends(trees: Sequence[Tree]) -> torch.Tensor:
    return torch.tensor([tree.start + end for tree in trees for end in tree.ends])


def _spans(branches: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """For every branch: the node it grows from, its first node, and the first node after it."""
    ends = list(itertools.accumulate(length for _, length in branches))
    return [
        (parent, end - length, end) for (parent, length), end in zip(branches, ends, strict=True)
    ]


def _common_length(left: list[int], right: list[int]) -> int:
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
