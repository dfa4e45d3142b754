"""The public layout: in, out, and what is refused. What the weights compute: test_huginn_parity.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mull
from mull import cli
from mull.checkpoints import huginn, store
from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer, Transformer, TransformerConfig

FIXTURE = Path(__file__).parents[1] / "fixtures" / "huginn-1-2-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the fixture to spoil."""
    for name in ("config.json", "model.safetensors"):
        tmp_path.joinpath("public").mkdir(exist_ok=True)
        shutil.copy(FIXTURE / name, tmp_path / "public" / name)
    return tmp_path / "public"


def shard(folder: Path) -> dict[str, str]:
    """Split the single file into three with an index; returns the map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(placed.values()):
        save_file({name: weights[name] for name in weights if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return placed


def change(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_sharded_equals_single(folder: Path) -> None:
    single = mull.load(folder)
    shard(folder)
    assert same(single, mull.load(folder))


def test_dtype_and_mode_are_as_asked(folder: Path) -> None:
    model = mull.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not model.training


def test_a_duplicate_of_a_tied_head_is_left_out(folder: Path) -> None:
    model = mull.load(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["transformer.wte.weight"].clone()}, folder / "model.safetensors")
    assert same(model, mull.load(folder))


@pytest.mark.parametrize(
    "shape",
    [
        {"n_prelude": 1, "n_core": 3, "n_coda": 2},
        {"n_prelude": 0, "n_core": 1, "n_coda": 0, "qk_bias": False},
        {"tie_embeddings": False, "initial_state": "zero", "d_ff": 20, "stop_tokens": (1, 2)},
        {"rope_base": 50_000.0, "norm_eps": 1e-5, "mean_iterations": 5},
    ],
    ids=str,
)
def test_out_and_in_again_is_the_same_model(tmp_path: Path, shape: dict[str, object]) -> None:
    config = RecurrentDepthConfig(vocab_size=11, d_model=24, n_heads=3, max_length=16, **shape)  # type: ignore[arg-type]
    model = RecurrentDepthTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    huginn.write(model, tmp_path / "public")
    back = mull.load(tmp_path / "public")
    assert same(model, back)
    ids = torch.randint(11, (2, 5))
    assert torch.equal(model(ids, 3).logits, back(ids, 3).logits)
    assert isinstance(back.config, RecurrentDepthConfig)
    assert (back.config.mlp_width, back.config.stop_tokens) == (config.mlp_width, config.stop_tokens)
    assert back.config.initial_state == config.initial_state


def test_what_is_written_is_what_the_reference_writes(folder: Path, tmp_path: Path) -> None:
    """Names, shapes and values of every tensor, rotary tables included, and every field we read."""
    huginn.write(mull.load(folder), tmp_path / "again")
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6 if name == "freqs_cis" else 0)
    wanted, written = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "again"))
    for field in [*huginn.FIELDS.values(), *huginn.FIXED, "model_type", "architectures", "num_key_value_heads"]:
        assert written[field] == wanted.get(field, written[field]), field


class PublicBase:
    """Takes what it knows and keeps the rest as attributes, as the base of public configurations does."""

    def __init__(self, *, tie_word_embeddings: bool = True, **others: object) -> None:
        vars(self).update(others, tie_word_embeddings=tie_word_embeddings)


class PublicConfig(PublicBase):
    """Hands the tied embedding on under its other name, as the public configuration class does."""

    def __init__(self, n_embd: int, n_heads: int, tie_embeddings: bool = True, **others: object) -> None:
        self.n_embd, self.n_heads, self.head_dim = n_embd, n_heads, n_embd // n_heads
        super().__init__(tie_word_embeddings=tie_embeddings, **others)


PUBLIC_ARGUMENTS = {  # of the public configuration class, by name
    "n_embd", "n_heads", "n_layers", "block_size", "vocab_size", "padding_multiple", "tie_embeddings",
    "intermediate_size", "bias", "architecture_class_name", "block_class_name", "norm_class_name", "norm_eps",
    "mlp_class_name", "nonlin_name", "init_strategy", "init_orthogonal", "state_init", "injection_type",
    "n_layers_in_recurrent_block", "mean_recurrence", "sampling_scheme", "mean_backprop_depth",
    "n_layers_in_prelude", "n_layers_in_coda", "qk_bias", "activation_checkpoint_impl", "rope_base", "torch_dtype",
    "transformers_version",
}  # fmt: skip
PUBLIC_OTHERS = {  # what it works out itself, at the same values, and what its base takes
    "padded_vocab_size", "num_key_value_heads", "head_dim", "effective_expected_depth",
    "architectures", "model_type", "eos_token_id",
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_is_what_the_public_class_takes(tied: bool, tmp_path: Path) -> None:
    """Guards a folder of ours in the hands of the public code: no key that its class makes itself, and none unknown."""
    config = RecurrentDepthConfig(vocab_size=11, d_model=24, n_heads=3, tie_embeddings=tied)
    huginn.write(RecurrentDepthTransformer(config), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    taken = PublicConfig(**written)
    assert vars(taken)["tie_word_embeddings"] is tied and taken.head_dim == written["head_dim"] == 8
    assert set(written) <= PUBLIC_ARGUMENTS | PUBLIC_OTHERS
    assert written["vocab_size"] == written["padded_vocab_size"] and written["num_key_value_heads"] == 3
    assert written["effective_expected_depth"] == 1 + 8 * 1 + 1 and written["n_layers"] == 3
    assert set(written) <= set(json.loads((FIXTURE / "config.json").read_text())) - {"tie_word_embeddings"}


def test_a_sharded_index_is_believed(folder: Path) -> None:
    """Guards against a stale copy in a later shard: the tensor is the one in the file that the index names."""
    single, placed = mull.load(folder), shard(folder)
    other = max(placed.values())
    name = next(name for name in placed if placed[name] < other and name != "freqs_cis")
    stale = torch.zeros_like(load_file(folder / placed[name])[name])
    weights = load_file(folder / other)
    save_file({**weights, name: stale, "transformer.old": torch.ones(3)}, folder / other)
    assert same(single, mull.load(folder))


def test_shards_are_reported_by_their_own_names(folder: Path) -> None:
    """Guards what a user can look for: the file that is wrong, or the index; no model.safetensors that is not there."""
    name, placed = "transformer.ln_f.weight", shard(folder)
    weights = load_file(folder / placed[name])
    save_file({**weights, name: weights[name][:5].clone()}, folder / placed[name])
    with pytest.raises(
        ValueError, match=rf"{placed[name]} does not fit config.json: final_norm.weight has shape \(5,\)"
    ):
        mull.load(folder)
    weights.pop(name)
    save_file(weights, folder / placed[name])
    with pytest.raises(ValueError, match=rf"{placed[name]} lacks {name}, which {huginn.INDEX} places there"):
        mull.load(folder)
    index = json.loads((folder / huginn.INDEX).read_text())
    index["weight_map"].pop(name)
    (folder / huginn.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{huginn.INDEX} does not fit config.json: final_norm.weight has shape none"):
        mull.load(folder)


def test_two_tensors_for_one_are_refused(folder: Path) -> None:
    """Guards against a tensor under the name that it has here beside that of the layout: neither is right."""
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "final_norm.weight": torch.zeros(32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="under two names"):
        mull.load(folder)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"block_size": 2**31 - 1}, "rotary table"),
        ({"n_layers_in_recurrent_block": 20_000}, "above 10,000"),
        ({"intermediate_size": 10**12}, "no possible model"),
        ({"n_layers_in_coda": 9_999}, "no possible model"),
        ({"nonlin_name": "\x1b[31m" * 99}, "nonlin_name"),
        ({"eos_token_id": {"a": 1}}, "stop_tokens"),
        ({"n_heads": "2"}, "n_heads"),
    ],
)
def test_sizes_that_cannot_be(
    fields: dict[str, object], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards time and memory in this layout too, up to the rotary table, which is written and never read."""
    change(folder, **fields)
    mid, out = folder.parent / "ours", folder.parent / "out"
    status = cli.main(["convert", str(folder), str(mid)]) or cli.main(["convert", str(mid), str(out)])
    line = capsys.readouterr().err
    assert status == 2 and says in line and line.count("\n") == 1 and line.strip().isprintable() and not out.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"injection": "add"},
        {"wiring": "pre_norm"},
        {"n_kv_heads": 1},
        {"qk_norm": True},
        {"window": 3},
        {"damping": 0.5},
        {"answer_feedback": True},
        {"causal": False},
    ],
)
def test_what_the_layout_cannot_express_is_refused_and_nothing_written(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    config = RecurrentDepthConfig(vocab_size=5, d_model=16, n_heads=2, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"the public layout cannot express {next(iter(changes))}"):
        huginn.write(RecurrentDepthTransformer(config), tmp_path / "out")
    plain = Transformer(TransformerConfig(vocab_size=5, d_model=16, n_heads=2, n_layers=1))
    with pytest.raises(ValueError, match="holds recurrent-depth models, not a Transformer"):
        huginn.write(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def lose_a_shard(folder: Path) -> None:
    (folder / sorted(set(shard(folder).values()))[1]).unlink()


def lose_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.ln_f.weight")
    save_file(weights, folder / "model.safetensors")


def add_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "transformer.extra": torch.ones(2)}, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lead_outside(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose_a_shard, "model-00002-of-00003.safetensors is missing"),
        (lose_a_tensor, "final_norm.weight has shape none and (32,) is expected"),
        (add_a_tensor, "transformer.extra has shape (2,) and none is expected"),
        (truncate, "is no safetensors file"),
        (pickle_only, "pytorch_model.bin is a pickle, which is never read"),
        (lead_outside, "which lies outside the folder"),
        (lambda f: change(f, n_embd=64), "is expected"),
        (lambda f: change(f, injection_type="gate"), "injection_type 'gate' is a variant that is not supported"),
        (lambda f: change(f, nonlin_name="ReLU2"), "nonlin_name 'ReLU2'"),
        (lambda f: change(f, num_key_value_heads=1), "num_key_value_heads 1 must equal n_heads 2"),
        (lambda f: change(f, n_layers_in_recurrent_block=0), "n_core must be at least 1, not 0"),
        (lambda f: (f / "config.json").write_text('{"model_type": "huginn_raven"}'), "lacks block_size"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(
    folder: Path, spoil: Callable[[Path], object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    for command in (["inspect", str(folder)], ["convert", str(folder), str(folder.parent / "out")]):
        assert cli.main(command) == 2
        line = capsys.readouterr().err
        assert says in line and line.startswith("mull: error: ") and line.count("\n") == 1
    assert not (folder.parent / "out").exists()


def test_convert_goes_both_ways_and_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = folder.parent / "ours", folder.parent / "theirs"
    assert cli.main(["convert", str(folder), str(ours)]) == 0
    assert json.loads((ours / "config.json").read_text())["model_type"] == "recurrent_depth"
    assert cli.main(["convert", str(ours), str(theirs)]) == 0
    assert huginn.is_huginn(json.loads((theirs / "config.json").read_text()))
    assert same(mull.load(folder), mull.load(ours)) and same(mull.load(folder), mull.load(theirs))
    capsys.readouterr()
    assert cli.main(["convert", str(folder), str(ours)]) == 2
    assert "is there already; name a folder that is new or empty" in capsys.readouterr().err


def test_a_tokenizer_comes_along(folder: Path) -> None:
    tokenizer = Path(__file__).parents[2] / "checkpoints" / "parity" / "tokenizer.json"
    shutil.copy(tokenizer, folder / "tokenizer.json")
    assert cli.main(["convert", str(folder), str(folder.parent / "ours")]) == 0
    assert store.load_tokenizer(folder.parent / "ours").get_vocab() == store.load_tokenizer(folder).get_vocab()
