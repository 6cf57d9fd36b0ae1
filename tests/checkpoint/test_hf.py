"""Hugging Face folders both ways: bitwise, transformers on the other side, and every complaint one line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openk2.checkpoint import hf
from openk2.checkpoint.hf import empty_model, export_hf, load_hf, model_tensors
from openk2.checkpoint.hf_config import config_fields, read_config
from openk2.checkpoint.hf_table import Drop, weight_table
from openk2.config.model import ModelConfig, YarnConfig
from openk2.config.presets import K2_1T, MODEL_PRESETS
from openk2.model.model import Model

transformers = pytest.importorskip("transformers")

CONFIG = ModelConfig(
    vocab_size=53,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=6,
    v_head_dim=10,
    q_lora_rank=20,
    routed_scaling_factor=2.0,
    max_position_embeddings=256,
)
YARN = YarnConfig(factor=8.0, original_max_position_embeddings=32)
VARIANTS = {
    "plain": {},
    "yarn, no q_lora": {"rope_scaling": YARN, "q_lora_rank": None},
    "groups, two shared, no dense": {"n_group": 2, "topk_group": 1, "n_shared_experts": 2, "first_k_dense_replace": 0},
    "no shared, two dense": {"n_shared_experts": 0, "first_k_dense_replace": 2},
}


def build(seed: int = 0, **changes) -> Model:
    model = Model(dataclasses.replace(CONFIG, **changes)).init_weights(seed).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape) + (0 if name.endswith("bias") else 0.5))
    return model


def export(model: Model, folder: Path, dtype: torch.dtype = torch.float32, **options) -> Path:
    return export_hf(model, folder, dtype=dtype, model_card="# A card\n", license_text="MIT\n", **options)


def edit(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def states_equal(a: Model, b: Model) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left
    )


# --- both ways ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_covers_the_state_dict_once_and_names_no_tensor_twice(variant):
    model = build(**VARIANTS[variant])
    operations = [op for op in weight_table(model.config) if not isinstance(op, Drop)]
    assert sorted(op.ours for op in operations) == sorted(model.state_dict())
    names = [name for name, _ in model_tensors(model)]
    assert len(names) == len(set(names))
    assert sum(t.numel() for _, t in model_tensors(model)) == sum(t.numel() for t in model.state_dict().values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_and_load_are_bitwise(tmp_path, variant, dtype):
    model = build(**VARIANTS[variant])
    if dtype == torch.bfloat16:
        model = model.to(dtype)
    loaded = load_hf(export(model, tmp_path / "out", dtype))
    assert states_equal(model, loaded) and loaded.config == model.config and loaded.compute_dtype == dtype
    assert all(gate.e_score_correction_bias.dtype == torch.float32 for gate in loaded.routers())


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "no shared, two dense"])
def test_ours_to_transformers_gives_our_logits(tmp_path, variant):
    model = build(**VARIANTS[variant])
    ids = torch.randint(53, (2, 40))
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(
        export(model, tmp_path / "out"), attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert reference.dtype == torch.float32 and reference.config.num_nextn_predict_layers == 0
    with torch.no_grad():
        ours, theirs = model(ids), reference(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    assert abs(float((p.exp() * (p - q)).sum(-1).mean())) <= 1e-10


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "no shared, two dense"])
@pytest.mark.parametrize("stacked", [False, True], ids=["per expert", "stacked"])
def test_transformers_to_ours_to_transformers_is_bitwise(tmp_path, variant, stacked):
    """What transformers saves, in its default form and with the experts stacked as it holds them in memory."""
    torch.manual_seed(1)
    fields = config_fields(dataclasses.replace(CONFIG, **VARIANTS[variant]))
    reference = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**fields)).eval()
    for layer in reference.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.e_score_correction_bias.normal_()
    reference.save_pretrained(tmp_path / "theirs", save_original_format=not stacked)
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in stored) == stacked
    model = load_hf(tmp_path / "theirs")
    assert model.config == dataclasses.replace(CONFIG, **VARIANTS[variant])
    ids = torch.randint(53, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, rtol=1e-5, atol=1e-6)
    again = load_file(export(model, tmp_path / "ours") / "model.safetensors")
    if not stacked:
        assert again.keys() == stored.keys()
        assert all(again[n].dtype == stored[n].dtype and torch.equal(again[n], stored[n]) for n in stored)
    back = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours")
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


# --- the folder ---


def test_what_the_folder_holds(tmp_path):
    model = build(rope_scaling=YARN)
    folder = export(
        model,
        tmp_path / "deep" / "out",
        torch.bfloat16,
        generation_config={"max_length": 99, "temperature": 0.6, "do_sample": True},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        save_tokenizer=lambda aside: (aside / "tokenizer.json").write_text("{}"),
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    raw = json.loads((folder / "config.json").read_text())
    assert raw["model_type"] == "deepseek_v3" and raw["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (1, 2, 3)
    assert raw["torch_dtype"] == "bfloat16" and raw["rope_theta"] == 50000.0
    assert raw["rope_scaling"]["type"] == raw["rope_scaling"]["rope_type"] == "yarn"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2 and generation["max_length"] == 99
    assert (folder / "README.md").read_text() == "# A card\n" and (folder / "LICENSE").read_text() == "MIT\n"
    stored = load_file(folder / "model.safetensors")
    wide = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in stored if name.endswith("e_score_correction_bias")} and len(wide) == 2
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert reference.dtype == torch.bfloat16 and reference.generation_config.eos_token_id == 2


def test_every_key_of_k2s_config_that_states_the_shape_is_written_the_same():
    """Against the released file, where it is at hand; what differs is only what differs on purpose."""
    assets = os.environ.get("OPENK2_ASSETS")
    if not assets:
        pytest.skip("OPENK2_ASSETS is not set: no released config.json to compare with")
    released = json.loads((Path(assets) / "k2" / "config.json").read_text())
    ours = config_fields(K2_1T)
    left_out = {name for name in released if name not in ours}
    assert left_out == {
        "aux_loss_alpha", "auto_map", "bos_token_id", "eos_token_id", "pretraining_tp", "quantization_config",
        "seq_aux", "torch_dtype", "transformers_version",
    }  # fmt: skip
    ours["rope_scaling"].pop("rope_type")
    differing = {name for name in released if name in ours and released[name] != ours[name]}
    assert differing == {"model_type"}
    assert read_config(Path(assets) / "k2") == K2_1T


def test_shards_and_their_index(tmp_path):
    model = build()
    folder = export(model, tmp_path / "out", max_shard_bytes=20_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (folder / "model.safetensors").exists()
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {name: shard.name for shard in shards for name in load_file(shard)}
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(t.nbytes for s in shards for t in load_file(s).values())
    assert all(sum(t.nbytes for t in load_file(s).values()) <= 20_000 for s in shards)
    assert states_equal(model, load_hf(folder))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(reference.lm_head.weight, model.lm_head.weight)


def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    export(build(0), tmp_path / "out")
    export(build(1), tmp_path / "out")
    assert states_equal(load_hf(tmp_path / "out"), build(1))
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="saw other files there"):
        export(build(0), other)
    assert (other / "chapter.txt").exists()
    (tmp_path / "empty").mkdir()
    export(build(0), tmp_path / "empty")


def test_a_failed_export_leaves_the_earlier_one(tmp_path):
    export(build(0), tmp_path / "out")

    def fail(aside: Path) -> None:
        raise RuntimeError("no tokenizer")

    with pytest.raises(RuntimeError):
        export(build(1), tmp_path / "out", save_tokenizer=fail)
    assert states_equal(load_hf(tmp_path / "out"), build(0))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- reading what others wrote ---


def test_k2s_own_config_reads_and_its_weights_do_not_yet(tmp_path):
    folder = export(build(), tmp_path / "out")
    edit(folder, model_type="kimi_k2", quantization_config={"quant_method": "fp8"})
    assert read_config(folder) == CONFIG
    with pytest.raises(ValueError, match="FP8 weights cannot be read yet"):
        load_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="saw neither model.safetensors nor"):
        load_hf(folder)


def test_absent_yarn_keys_mean_what_transformers_takes_them_to_mean(tmp_path):
    folder = export(build(), tmp_path / "out")
    edit(folder, rope_scaling={"type": "yarn", "factor": 8.0}, rope_theta=1000.0)
    assert read_config(folder).rope_scaling == YarnConfig(8.0, 256, 32.0, 1.0, 0.0, 0.0)
    model = load_hf(folder).eval()
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(53, (1, 60))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, rtol=1e-5, atol=1e-6)
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    assert (read_config(folder).rope_theta, read_config(folder).rope_scaling) == (77.0, None)


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_presets_survive_their_own_config_file(tmp_path, preset):
    (tmp_path / "config.json").write_text(json.dumps(config_fields(MODEL_PRESETS[preset])))
    assert read_config(tmp_path) == MODEL_PRESETS[preset]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "saw model_type 'llama'"),
        ({"model_type": None}, "saw model_type None"),
        ({"attention_bias": True}, "saw attention_bias = True, expected False"),
        ({"tie_word_embeddings": True}, "saw tie_word_embeddings = True"),
        ({"hidden_act": "gelu"}, "saw hidden_act = 'gelu', expected 'silu'"),
        ({"rope_interleave": False}, "saw rope_interleave = False"),
        ({"scoring_func": "softmax"}, "saw scoring_func = 'softmax'"),
        ({"num_key_value_heads": 1}, "saw num_key_value_heads = 1"),
        ({"hidden_size": "32"}, "saw hidden_size = '32', expected int"),
        ({"hidden_size": True}, "saw hidden_size = True, expected int"),
        ({"n_group": None}, "saw n_group = None, expected int"),
        ({"hidden_size": -4}, "model.hidden_size: saw -4"),
        ({"rope_scaling": "yarn"}, "saw rope_scaling = 'yarn'"),
        ({"rope_scaling": {"type": "longrope"}}, "saw rope_scaling of type 'longrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": "8"}}, r"saw rope_scaling\.factor = '8'"),
        ({"rope_scaling": {"type": "yarn", "attention_factor": 1.5}}, r"saw rope_scaling\.attention_factor = 1\.5"),
        ({"rope_theta": "big"}, "saw rope_theta = 'big'"),
    ],
)
def test_unsupported_configs_are_refused_by_name(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({**config_fields(CONFIG), **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_configs_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: saw no file"):
        read_config(tmp_path)
    for text, message in (("{", "saw broken JSON"), ("[]", "saw a JSON list"), ("\xff", "saw broken JSON")):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    with pytest.raises(ValueError, match="saw no vocab_size, hidden_size"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="saw a file, expected a model folder"):
        read_config(tmp_path / "config.json")


def rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path)


def test_rotary_tables_of_released_checkpoints_are_dropped(tmp_path):
    folder = export(build(), tmp_path / "out")
    rewrite(
        folder,
        lambda t: t.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(56) for i in (0, 1, 2)}),
    )
    assert states_equal(load_hf(folder), build())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias"),
         r"saw 1 missing \(model\.layers\.1\.mlp\.gate\.e_score_correction_bias\) and 0 unexpected tensors"),
        (lambda t: t.update({"model.layers.3.norm.weight": torch.ones(1)}),
         r"saw 0 missing and 1 unexpected \(model\.layers\.3\.norm\.weight\) tensors"),
        (lambda t: [t.pop(f"model.layers.1.mlp.experts.{e}.up_proj.weight") for e in range(4)],
         r"saw 4 missing \(.*experts\.0\.up_proj\.weight, .*, \.\.\.\) and 0 unexpected"),
        (lambda t: t.update({"lm_head.weight": torch.ones(53, 31)}),
         r"saw lm_head\.weight of shape \[53, 31\], expected \[53, 32\]"),
    ],
    ids=["missing", "unexpected", "several", "shape"],
)  # fmt: skip
def test_wrong_tensors_are_one_line(tmp_path, change, message):
    folder = export(build(), tmp_path / "out")
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_hf(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_one_line(tmp_path, keep):
    folder = export(build(), tmp_path / "out")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: saw broken weights") as caught:
        load_hf(folder)
    assert "\n" not in str(caught.value)


def test_broken_indexes_are_one_line(tmp_path):
    folder = export(build(), tmp_path / "out", max_shard_bytes=20_000)
    index = folder / "model.safetensors.index.json"
    shard = next(folder.glob("model-00002*"))
    shard.rename(folder / "gone")
    with pytest.raises(ValueError, match=f"saw '{shard.name}' named, expected a file"):
        load_hf(folder)
    for content, message in (
        ({"weight_map": {"a": "../secret"}}, "saw '../secret' named"),
        ({"weight_map": ["a"]}, "saw no weight_map"),
        ({}, "saw no weight_map"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_hf(folder)


def test_pickled_weights_are_not_read(tmp_path):
    folder = export(build(), tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled .bin weights are not read"):
        load_hf(folder)


def test_dtype_on_loading(tmp_path):
    folder = export(build(), tmp_path / "half", torch.float16)
    assert load_hf(folder).compute_dtype == torch.float32
    asked = load_hf(folder, dtype=torch.bfloat16)
    assert asked.lm_head.weight.dtype == asked.compute_dtype == torch.bfloat16
    rewrite(
        folder,
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(torch.float8_e4m3fn)}),
    )
    with pytest.raises(ValueError, match="quantised weights cannot be read yet"):
        load_hf(folder)


def test_empty_model_allocates_without_drawing():
    before = torch.get_rng_state()
    model = empty_model(CONFIG, torch.bfloat16)
    assert torch.equal(before, torch.get_rng_state()) and model.norm.weight.dtype == torch.bfloat16
    assert not any(t.is_meta for t in model.state_dict().values())


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(ValueError, match=r"saw a full disk .* expected room for \d+ bytes"):
        export(build(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
