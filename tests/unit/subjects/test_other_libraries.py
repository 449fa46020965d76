"""Models of other libraries as subjects: honest analyses change nothing, and what a test does change is put back.

One model each, made without a download, since the libraries take seconds to import.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from nopos.errors import ClaimError
from nopos.subjects.model_subject import ModelSubject

TOKENS = torch.randint(1, 11, (3, 6), generator=torch.Generator().manual_seed(0))


class Hooked(HookedRootModule):
    """One's own model with TransformerLens' hook points."""

    def __init__(self):
        super().__init__()
        self.embed, self.hook_embed, self.unembed = nn.Embedding(11, 8), HookPoint(), nn.Linear(8, 11)
        self.setup()

    def forward(self, tokens):
        return self.unembed(self.hook_embed(self.embed(tokens)))


def gpt2():
    """Hugging Face's, with its unembedding tied to its embedding."""
    sizes = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(sizes)


def native_bridge():
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 16, "d_vocab": 11, "n_ctx": 8}
    return TransformerBridge.boot_native(TransformerBridgeConfig(**sizes, act_fn="relu", normalization_type="LN"))


def bridge_around_gpt2():
    model = gpt2()
    return build_bridge_from_module(model, architecture="GPT2LMHeadModel", hf_config=model.config, model_name="tiny")


MODELS = {"hooked": Hooked, "GPT-2": gpt2, "native bridge": native_bridge, "bridge around GPT-2": bridge_around_gpt2}
WITH_HOOK_POINTS = ("hooked", "native bridge", "bridge around GPT-2")


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def subject(name):
    torch.manual_seed(0)
    return ModelSubject(name, {"model": MODELS[name]().eval()}, {"tokens": TOKENS}, solves_the_task=lambda: True)


@torch.no_grad()
def logits(model, tokens):
    output = model(tokens)
    return getattr(output, "logits", output)


def with_forward_hooks(model, tokens):
    seen = []
    handles = [module.register_forward_hook(lambda *_: seen.append(1)) for module in model.modules()]
    result = logits(model, tokens)
    for handle in handles:
        handle.remove()
    assert seen
    return result


def with_gradients(model, tokens):
    output = model(tokens)
    getattr(output, "logits", output).sum().backward()
    return sum(weights.grad.abs().sum() for weights in model.parameters() if weights.grad is not None).item()


def embedding(model):
    return next(point for point in model.hook_dict if "embed" in point and "pos" not in point)


@torch.no_grad()
def with_cache(model, tokens):
    found, cache = model.run_with_cache(tokens)
    assert len(cache) > 0
    return found


@torch.no_grad()
def with_an_edit(model, tokens):
    return model.run_with_hooks(tokens, fwd_hooks=[(embedding(model), lambda activation, hook: 0 * activation)])


@torch.no_grad()
def with_a_hook_that_is_reset(model, tokens):
    model.add_hook(embedding(model), lambda activation, hook: 0 * activation)
    found = model(tokens)
    model.reset_hooks()
    return found


def test_honest_analyses_change_nothing_and_give_the_same_in_any_order(subject, name):
    """A bridge wires hooks of its own when it is first read, and Hugging Face's model when it first gives attention."""
    analyses = [logits, with_forward_hooks, with_gradients]
    if name in WITH_HOOK_POINTS:
        analyses += [with_cache, with_an_edit, with_a_hook_that_is_reset]
    results = []
    for order in (analyses, analyses[::-1]):
        fresh = ModelSubject(name, {"model": subject.model}, {"tokens": TOKENS}, solves_the_task=lambda: True)
        with fresh.proven_unchanged():
            results.append({analysis: fresh.run(analysis) for analysis in order})
    first, second = results
    assert all(torch.equal(torch.as_tensor(first[one]), torch.as_tensor(second[one])) for one in analyses)
    assert torch.equal(first[logits], first[with_forward_hooks])
    if name in WITH_HOOK_POINTS:
        assert torch.equal(first[logits], first[with_cache])
        assert not torch.equal(first[logits], first[with_an_edit])
        assert torch.equal(first[with_an_edit], first[with_a_hook_that_is_reset])


def first_linear(model):
    return next(module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.Linear))


def nothing(*_):
    return None


CHANGES = {
    "a weight": (lambda model: first_linear(model).weight.data.mul_(2), "weights"),
    "another weight": (lambda model: setattr(first_linear(model), "weight", nn.Parameter(torch.zeros(8))), "weights"),
    "a hook left behind": (lambda model: first_linear(model).register_forward_hook(nothing), "hooks"),
    "a forward pass": (lambda model: setattr(first_linear(model), "forward", torch.zeros_like), "attributes"),
    "an attribute": (lambda model: setattr(model, "noted", 1), "attributes"),
    "training": (lambda model: model.train(), "attributes"),
}
OF_HOOK_POINTS = {
    "an edit left behind": (
        lambda model: model.add_hook(embedding(model), lambda activation, hook: 0 * activation),
        "hooks",
    )
}
OF_A_BRIDGE = {
    "a hook on the model within": (lambda model: model.original_model.register_forward_hook(nothing), "hooks"),
    "a setting": (lambda model: setattr(model.cfg, "use_hook_mlp_in", True), "attributes"),
}
OF_GPT2 = {
    "a setting of its config": (
        lambda model: setattr(getattr(model, "original_model", model).config, "output_attentions", True),
        "attributes",
    )
}


def test_what_a_test_changes_is_found_and_put_back(subject, name):
    changes = CHANGES | (OF_HOOK_POINTS if name in WITH_HOOK_POINTS else {})
    changes |= (OF_A_BRIDGE if "bridge" in name else {}) | (OF_GPT2 if "GPT-2" in name else {})
    with subject.proven_unchanged():
        expected, sha256 = subject.run(logits), subject.record()["sha256"]
    for what, (change, kind) in changes.items():
        with pytest.raises(ClaimError, match=f"{name}: a test changed its .*{kind}"), subject.proven_unchanged():
            change(subject.model)
        again = ModelSubject(name, {"model": subject.model}, {"tokens": TOKENS}, solves_the_task=lambda: True)
        assert torch.equal(again.run(logits), expected), what
        assert again.record()["sha256"] == sha256, what
