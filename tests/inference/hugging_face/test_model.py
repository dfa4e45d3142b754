"""forward as transformers has it: labels, outputs, refusals, gradients; the same weights under the same names."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

import mull
from mull.inference.hugging_face import CONFIGS, MULL_MODELS, MullCache, register
from mull.models.families import FAMILIES

IDS = torch.tensor([[0, 0, 3, 1, 4], [0, 5, 9, 2, 6], [5, 3, 5, 8, 9]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("family", ["recurrent", "inner_thinking", "transformer"])
def test_one_body(wrapped: Callable[..., Any], family: str) -> None:
    """Guards the two faces: the same names and tensors, also where one is copied, pickled, moved or put in a mode."""
    model = wrapped(family)
    names = model.mull.state_dict().keys()
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert each.state_dict().keys() == names and each.mull.embedding is each.get_input_embeddings()
        assert [p is q for p, q in zip(each.parameters(), each.mull.parameters(), strict=True)].count(False) == 0
        assert torch.equal(each(IDS, attention_mask=MASK).logits, model.mull(IDS, attention_mask=MASK).logits)
    model.float().train()
    assert model.mull.dtype == torch.float32 and model.mull.training
    for module in model.modules():
        module.training = False  # as others put modes back, one by one
    model(IDS)
    assert not model.mull.training
    model.train().eval()
    assert not model.mull.training and not [n for n, b in model.named_buffers() if n not in names]


def test_known_to_transformers() -> None:
    """Guards registration: each family has its classes, which say in transformers' words what mull's config says."""
    assert {*CONFIGS} == {*MULL_MODELS} >= {"recurrent_depth", "inner_thinking", "transformer"}
    config = CONFIGS["recurrent_depth"](vocab_size=7, d_model=16, n_heads=2, n_kv_heads=1, tie_embeddings=False)
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (16, 2, 1)
    assert (config.tie_word_embeddings, config.max_position_embeddings, config.d_ff) == (False, 1024, 48)
    assert config.architecture() == mull.RecurrentDepthConfig(
        vocab_size=7, d_model=16, n_heads=2, n_kv_heads=1, tie_embeddings=False
    )
    assert type(config).from_dict(config.to_dict()).architecture() == config.architecture()
    with pytest.raises(ValueError, match="d_model 15 is not divisible by n_heads 2"):
        CONFIGS["transformer"](vocab_size=7, d_model=15, n_heads=2)
    with pytest.raises(ValueError, match="needs vocab_size"):
        CONFIGS["transformer"]()
    assert {*CONFIGS} <= {*FAMILIES}


def test_a_family_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards `register`: a family that is defined later is known from then on, and the others stay as they are."""

    class Later(mull.TransformerConfig):
        model_type = "later"

    before = CONFIGS["transformer"]

    class LaterTransformer(mull.Transformer):
        config_class = Later

        def __init__(self, config: Later) -> None:
            super().__init__(config)
            self.bias = torch.nn.Parameter(torch.zeros(1))  # of the model itself, and of no layer

    monkeypatch.setitem(FAMILIES, "later", LaterTransformer)
    register()
    model = AutoModelForCausalLM.from_config(CONFIGS["later"](vocab_size=5, d_model=8, n_heads=2))
    assert model.state_dict().keys() == model.mull.state_dict().keys() and "bias" in model.state_dict()
    assert type(model) is MULL_MODELS["later"] and model(IDS % 5).logits.shape == (3, 5, 5)
    assert CONFIGS["transformer"] is before and MULL_MODELS["transformer"].config_class is before
    for known in (CONFIGS, MULL_MODELS):
        monkeypatch.delitem(known, "later")


def test_loss(wrapped: Callable[..., Any]) -> None:
    """Guards the loss of a causal model, written out: shifted, -100 left out, a sum over what a trainer counts."""
    model = wrapped("recurrent")
    labels = torch.where(MASK == 1, IDS, -100)
    out = model(IDS, attention_mask=MASK, labels=labels, iterations=4)
    logits = model.mull(IDS, 4, attention_mask=MASK).logits.float()
    scored = labels[:, 1:].reshape(-1)
    each = cross_entropy(logits[:, :-1].reshape(-1, 11), scored, reduction="none")
    assert torch.isclose(out.loss, each.sum() / (scored != -100).sum())
    assert torch.isclose(
        model(IDS, attention_mask=MASK, labels=labels, iterations=4, num_items_in_batch=40).loss, each.sum() / 40
    )


def test_training_adds_what_routers_learn_by(wrapped: Callable[..., Any]) -> None:
    """Guards the routers: their own loss joins in training mode, with the weight of mull train, and not in eval."""
    model = wrapped("inner_thinking")
    plain = model(IDS, labels=IDS, iterations=3).loss
    assert torch.isclose(plain, model.loss_function(model.mull(IDS, 3).logits, IDS, vocab_size=11))
    model.train()
    out = model.mull(IDS, 3)
    wanted = model.loss_function(out.logits, IDS, vocab_size=11) + 0.001 * out.auxiliary_loss
    assert torch.isclose(model(IDS, labels=IDS, iterations=3).loss, wanted)


def test_gradient_window(wrapped: Callable[..., Any]) -> None:
    """Guards backprop_iterations: as mull's own, as an argument or a field of the config; refused without a loop."""

    def gradient(run: Callable[[Any], Any]) -> torch.Tensor:
        model = wrapped("recurrent").train()
        run(model)
        return model.mull.core[0].attention.qkv.weight.grad

    def by_hand(model: Any) -> None:
        model.loss_function(model.mull(IDS, 6, backprop_iterations=2).logits, IDS, vocab_size=11).backward()

    def by_config(model: Any) -> None:
        model.config.backprop_iterations = 2
        model(IDS, labels=IDS, iterations=6).loss.backward()

    wanted = gradient(by_hand)
    assert torch.equal(
        gradient(lambda m: m(IDS, labels=IDS, iterations=6, backprop_iterations=2).loss.backward()), wanted
    )
    assert torch.equal(gradient(by_config), wanted)
    assert not torch.equal(gradient(lambda m: m(IDS, labels=IDS, iterations=6).loss.backward()), wanted)
    with pytest.raises(ValueError, match="backprop_iterations=2 needs a model with a core that is iterated"):
        wrapped("transformer")(IDS, backprop_iterations=2)


def test_outputs(wrapped: Callable[..., Any]) -> None:
    """Guards what comes back: the state, the counts, the last logits, a cache if one is asked for, a tuple."""
    model = wrapped("recurrent")
    out = model(IDS, attention_mask=MASK, iterations=4, output_hidden_states=True, logits_to_keep=2)
    whole = model.mull(IDS, 4, attention_mask=MASK)
    assert torch.equal(out.hidden_states[0], whole.state) and len(out.hidden_states) == 1
    assert torch.equal(out.logits, whole.logits[:, -2:]) and (out.iterations == 4).all() and out.cache is None
    logits, iterations = model(IDS, return_dict=False)
    assert logits.shape == (3, 5, 11) and (iterations == 3).all()
    out = model(IDS, attention_mask=MASK, use_cache=True)
    assert isinstance(out.cache, MullCache) and not out.logits.requires_grad
    following = torch.tensor([[1], [2], [3]])
    for mask in (None, torch.cat([MASK, torch.ones(3, 1, dtype=torch.int64)], 1)):
        cache = copy.deepcopy(out.cache)
        ids = torch.cat([IDS, following], 1)
        wanted = model(ids, attention_mask=torch.cat([MASK, torch.ones_like(following)], 1)).logits[:, -1]
        assert torch.allclose(model(following, attention_mask=mask, past_key_values=cache).logits[:, 0], wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs_embeds": torch.zeros(3, 5, 24)}, "inputs_embeds is refused: a mull model reads token ids"),
        ({"position_ids": IDS}, "position_ids is refused: positions are counted from attention_mask"),
        ({"output_attentions": True}, "output_attentions is refused"),
        ({"iteration": 3}, "iteration is refused: a mull model has no such argument"),
        ({"attention_mask": MASK[:, None, None]}, r"attention_mask has shape \(3, 1, 1, 5\); it must be \(3, 5\)"),
        ({"labels": IDS[:, 1:]}, r"labels have shape \(3, 4\), input_ids \(3, 5\)"),
        ({"cache": 3}, "cache must be a MullCache, not a int"),
        ({"exit": "latent:0.1", "backprop_iterations": 2}, "backprop_iterations=2 is refused: an exit keeps no"),
        ({"backprop_iterations": 0}, "backprop_iterations must be at least 1, not 0"),
        ({"input_ids": None}, "a mull model reads token ids; give input_ids"),
    ],
    ids=str,
)
def test_refusals(wrapped: Callable[..., Any], options: dict[str, Any], words: str) -> None:
    """Guards arguments that would be accepted and not followed."""
    with pytest.raises(ValueError, match=words):
        wrapped("recurrent")(**{"input_ids": IDS} | options)


def test_what_training_refuses(wrapped: Callable[..., Any]) -> None:
    """Guards a training loop: no exit, no cache (it keeps no gradients), no checkpointing, no other vocabulary; and
    generate in the middle of it leaves the mode alone."""
    model = wrapped("recurrent").train()
    with pytest.raises(ValueError, match="exit 'latent' ends thinking at inference"):
        model(IDS, exit="latent:0.1")
    with pytest.raises(ValueError, match="a cached call keeps no gradients"):
        model(IDS, labels=IDS, use_cache=True)
    with pytest.raises(ValueError, match="gradient checkpointing is refused"):
        model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="the vocabulary of 11 tokens cannot become 12"):
        model.resize_token_embeddings(12)
    assert model.resize_token_embeddings(11) is model.mull.embedding
    assert model.get_output_embeddings() is model.mull.head
    tied = wrapped("recurrent", tie_embeddings=True)
    assert tied.get_output_embeddings() is tied.mull.embedding
    with pytest.raises(ValueError, match="the head is tied to the embedding"):
        tied.set_output_embeddings(torch.nn.Linear(24, 11))
    model.generate(IDS, max_new_tokens=2)
    assert model.training and model.mull.training


@pytest.mark.parametrize("name", ["parity", "text", "inner-thinking"])
def test_their_loader_finds_the_same_tensors(opened: Callable[[str], Any], name: str) -> None:
    """Guards buffers: built without memory and filled by transformers' own loader, every tensor is as mull.load has it,
    and nothing is there that is not stored; rotary tables are made in every forward."""
    model, _ = opened(name)
    theirs = PreTrainedModel.from_pretrained.__func__(type(model), model.source)  # type: ignore[attr-defined]
    wanted = mull.load(model.source)
    tensors = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    assert tensors.keys() == wanted.state_dict().keys()
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in tensors.items())
    ids = torch.arange(6)[None] % 4
    assert torch.equal(theirs(ids).logits, wanted(ids).logits) and torch.equal(model(ids).logits, wanted(ids).logits)
