"""Layers computed our way against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reweighting.records.reader import RecordReader, load_train
from reweighting.reward_model import attention as layers
from reweighting.reward_model import norms
from reweighting.reward_model.attention import attention_along, is_dual, tree_attention
from reweighting.reward_model.patches import PatchProjection, speed_up_patches
from reweighting.reward_model.prefix_tree import PackedTrees, Tree, ancestors, pack
from reweighting.reward_model.read_out import TiedVocabulary
from reweighting.system.device import autocast


@pytest.fixture
def prompts(dataset, reward_model) -> PackedTrees:
    """Several images, each with a chain of prefixes."""
    records = load_train(RecordReader(str(dataset / "train.json"), image_root=str(dataset)))[:9]
    return pack([reward_model.encoder.encode(r.images, r.prompts) for r in records])


@pytest.mark.parametrize("seen", ["all", "causal", "tree"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.bfloat16, 3e-2)])
def test_attention_moves_as_forward_mode_says(seen, dtype, tolerance):
    """Two heads of keys are shared by four of queries."""
    torch.manual_seed(0)
    shapes = [(1, 4, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8)]
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tangents = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tree = (torch.rand(9, 9) < 0.5).tril() | torch.eye(9, dtype=bool)
    mask = torch.where(tree, 0.0, float("-inf"))[None, None] if seen == "tree" else None

    def plain(query, key, value):
        attn_mask = None if mask is None else mask.double()
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, is_causal=seen == "causal", enable_gqa=True
            ).transpose(1, 2)

    exact = torch.func.jvp(plain, tuple(values), tuple(tangents))
    with torch.no_grad(), forward_ad.dual_level():
        inputs = [
            forward_ad.make_dual(value.to(dtype), tangent.to(dtype))
            for value, tangent in zip(values, tangents, strict=True)
        ]
        assert is_dual(inputs[0]) and not is_dual(values[0])
        ours = forward_ad.unpack_dual(attention_along(*inputs, mask, seen == "causal"))
        for found, wanted in zip(ours, exact, strict=True):
            assert (found - wanted).norm() / wanted.norm() <= tolerance


@pytest.mark.parametrize("ends_only", [False, True])
@pytest.mark.parametrize("rows", [5, 16, 30, 100])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_blocks_of_queries_see_what_they_see_together(rows, ends_only, side_by_side, monkeypatch):
    """Trees and plain chains in one sequence: outputs, gradients and directional derivatives."""
    monkeypatch.setitem(layers.ROWS, "cpu", rows)
    if side_by_side:  # as on CUDA, where the three lengths would be too different
        monkeypatch.setattr(layers, "TOGETHER", {"cpu"})
        monkeypatch.setattr(layers, "SIMILAR", 0.1)
    torch.manual_seed(0)
    trees = [
        Tree(0, 33, [], [(-1, 10), (4, 8), (9, 7), (20, 8)], [17, 24, 32]),
        Tree(33, 53, [], [(-1, 15), (14, 5)], [19]),
        Tree(53, 60, [], [(-1, 7)], [2, 6]),
    ]
    nothing, ends = torch.empty(0), torch.tensor([17, 24, 32, 52, 55, 59])
    packed = PackedTrees(nothing, nothing, nothing, ends, trees, images=[], prompt_tokens=0)
    sees = torch.block_diag(*(ancestors(tree.branches) for tree in trees)).bool()
    asked = torch.ones(60, 1, 1) if not ends_only else torch.zeros(60, 1, 1).index_fill(0, ends, 1)
    shapes = [(1, 4, 60, 8), (1, 2, 60, 8), (1, 2, 60, 8)]
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tangents = [torch.randn(shape, dtype=torch.float64) for shape in shapes]

    def plain(query, key, value):
        with sdpa_kernel(SDPBackend.MATH):
            output = F.scaled_dot_product_attention(
                query, key, value, sees, enable_gqa=True, scale=0.3
            )
        return output.transpose(1, 2) * asked

    def ours(*inputs):
        return tree_attention(None, *inputs, packed, ends_only, scaling=0.3)[0]

    for attend in (ours, plain):
        inputs = [value.clone().requires_grad_() for value in values]
        output = attend(*inputs)
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        if attend is ours:
            found = output, *gradients
    torch.testing.assert_close(found, (output, *gradients))
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)]
        along = forward_ad.unpack_dual(ours(*duals)).tangent
    _, wanted = torch.func.jvp(plain, tuple(values), tuple(tangents))
    torch.testing.assert_close(along, wanted, rtol=1e-5, atol=1e-6)  # softmax in fp32


def test_patches_are_projected_as_the_convolution_does():
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 7, (2, 4, 4), stride=(2, 4, 4))
    product = copy.deepcopy(convolution)
    speed_up_patches(nn.Sequential(product))
    assert isinstance(product, PatchProjection)
    patches = torch.randn(5, 3, 2, 4, 4)
    for module in (convolution, product):
        module(patches).square().sum().backward()
    torch.testing.assert_close(product(patches), convolution(patches))
    torch.testing.assert_close(product.weight.grad, convolution.weight.grad, rtol=1e-4, atol=1e-4)
    # What is not cut into patches is still convolved.
    image = torch.randn(1, 3, 4, 8, 8)
    torch.testing.assert_close(product(image), convolution(image))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tied_vocabulary_has_the_gradient_of_both_its_uses(dtype):
    """First and second derivatives, and forward mode; a token occurs twice."""
    torch.manual_seed(0)
    vocabulary, tokens = torch.randn(11, 5, dtype=dtype), torch.tensor([[3, 1, 3, 10]])
    head = torch.randn(11, dtype=torch.promote_types(dtype, torch.float32))

    def plain(vocabulary, head):
        return F.embedding(tokens, vocabulary), head @ vocabulary.to(head.dtype)

    def ours(vocabulary, head):
        return TiedVocabulary.apply(vocabulary, head, tokens)

    gradients = []
    for embed in (plain, ours):
        inputs = [vocabulary.clone().requires_grad_(), head.clone().requires_grad_()]
        embedded, direction = embed(*inputs)
        gradients.append(torch.autograd.grad((embedded * direction).square().sum(), inputs))
    tolerance = {"rtol": 3e-2, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(gradients[1], gradients[0], **tolerance)
    if dtype == torch.float64:
        inputs = vocabulary.requires_grad_(), head.requires_grad_()
        assert torch.autograd.gradcheck(ours, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(ours, inputs)


def test_a_tied_vocabulary_is_used_where_there_is_one(dataset, reward_model, monkeypatch):
    """Scores and gradients of the whole model are those of the two separate uses."""
    reader = RecordReader(str(dataset / "meta.json"), str(dataset))
    samples = reader.samples(reader.meta_sample)[:2]
    packed = pack([reward_model.encoder.encode(s.images, s.prompts) for s in samples])
    results, calls = [], []
    once = TiedVocabulary.apply

    def separately(vocabulary, head, tokens):
        calls.append(tokens.numel())
        return F.embedding(tokens, vocabulary), head @ vocabulary

    for apply in (once, separately):
        monkeypatch.setattr(TiedVocabulary, "apply", apply)
        reward_model.zero_grad()
        log_odds = reward_model(packed)
        log_odds.square().sum().backward()
        gradients = {n: p.grad for n, p in reward_model.named_parameters() if p.grad is not None}
        results.append((log_odds.detach(), gradients))
    assert calls == [len(packed.input_ids)]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_last_layer_runs_only_where_prompts_end(dataset, reward_model, checkpointed):
    """Two batches before one backward pass: each layer that is computed again knows its own."""
    model = copy.deepcopy(reward_model)
    if checkpointed:
        model.checkpoint_gradients()
    reader = RecordReader(str(dataset / "meta.json"), str(dataset))
    encoded = [
        model.encoder.encode(s.images, s.prompts) for s in reader.samples(reader.meta_sample)
    ]
    batches = [pack([encoded[0], encoded[0], encoded[1]]), pack(encoded[2:5])]
    for batch in (*batches, batches[1].part([2, 0])):
        assert torch.equal(batch.ends, batch.read_outs.unique())
    distinct = [len(batch.ends) for batch in batches]
    assert distinct[0] < len(batches[0].read_outs)
    *_, last = model.base_model.get_decoder().layers
    seen = []
    last.mlp.gate_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    attended = []  # how many tokens the last layer attends from
    last.self_attn.o_proj.register_forward_pre_hook(
        lambda _, inputs: attended.append(int(inputs[0].detach().any(-1).sum()))
    )

    def gradients() -> list[torch.Tensor]:
        loss = sum((model(batch) * torch.arange(len(batch.read_outs))).sum() for batch in batches)
        return torch.autograd.grad(loss, list(model.parameters()))

    found = gradients()
    assert seen[:2] == distinct and sorted(seen) == sorted(distinct * (1 + checkpointed))
    assert attended == seen
    with torch.no_grad():  # equal prompts, equal scores, to the last bit
        steps = len(encoded[0].token_ids)
        scores = model(batches[0])
        assert torch.equal(scores[:steps], scores[steps : 2 * steps])
    last.__class__ = type(last).__mro__[2]
    torch.testing.assert_close(found, gradients(), rtol=1e-4, atol=1e-5)
    assert max(seen) == max(len(batch.input_ids) for batch in batches)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_norms_change_no_score_and_no_gradient(reward_model, prompts, precision, monkeypatch):
    """On CUDA, where they are used; here on the CPU."""
    model, found = copy.deepcopy(reward_model), []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr(norms, "FUSED_ON", devices)
        with autocast("cpu", precision):
            log_odds = model(prompts)
        found.append([log_odds, *torch.autograd.grad(log_odds.sum(), model.parameters())])
    fused = [m for m in model.modules() if isinstance(m, norms._FusedNorm)]
    assert len(fused) == 2 * len(model.base_model.get_decoder().layers)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-7


@pytest.mark.slow
def test_compiled_layers_give_the_same_scores_gradients_and_state(reward_model, prompts):
    plain, compiled = copy.deepcopy(reward_model), copy.deepcopy(reward_model)
    compiled.compile_layers()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    found = []
    for model in (plain, compiled):
        log_odds = model(prompts)
        found.append([log_odds, *torch.autograd.grad(log_odds.sum(), model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


@pytest.mark.parametrize("lengths", [(5, 16, 3), (8, 8), (7, 7)])
def test_images_as_lists_and_as_rectangles_see_themselves_only(lengths):
    """Both ways to attend within several images at once, against one image after the other."""
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 4, dtype=torch.float64)
    parts = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    wanted = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], 2)
    rectangle = layers.image_rectangle(lengths, query.dtype, query.device)
    for images in (layers.images_of(lengths, query.device), rectangle):
        found, _ = tree_attention(None, query, key, value, None, images=images)
        torch.testing.assert_close(found.transpose(1, 2), wanted)
