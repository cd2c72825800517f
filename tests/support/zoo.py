"""Real models, tiny: transformers' and timm's architectures built from a configuration with random weights; nothing is downloaded.

Each builder gives a module in training mode without dropout, example inputs and keyword inputs. The packages are optional; where one is
missing, the test that asked for it is skipped and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from support.torchvision_stub import torchvision_or_stub
from torch import nn

Specimen = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Builder = Callable[..., Specimen]

BATCH, LENGTH, VOCABULARY = 2, 7, 19
BUILDERS: Final[dict[str, Builder]] = {}

GATED: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "use_cache": False,
}
ENCODER: Final = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def build(name: str, **options: Any) -> Specimen:
    """A model of the zoo by name, its example inputs and its keyword inputs; the weights depend on torch's seed."""
    return BUILDERS[name](**options)


def _builder(function: Builder) -> Builder:
    BUILDERS[function.__name__] = function
    return function


def _transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed (the extra 'models' has it)")


def _timm() -> Any:
    with torchvision_or_stub():
        return pytest.importorskip("timm", reason="timm is not installed (the extra 'models' has it)")


def _tokens() -> torch.Tensor:
    return torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % VOCABULARY


def _language(kind: str, configuration: dict[str, Any], attention: str = "sdpa") -> Specimen:
    package = _transformers()
    config = getattr(package, f"{kind}Config")(**configuration)
    model = package.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.train(), (_tokens(),), {}


@_builder
def gpt2(**options: Any) -> Specimen:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "use_cache": False}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    return _language("GPT2", {**sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, **options)


@_builder
def llama(**options: Any) -> Specimen:
    return _language("Llama", GATED, **options)


@_builder
def qwen3(**options: Any) -> Specimen:
    return _language("Qwen3", {**GATED, "head_dim": 6}, **options)


@_builder
def gemma2() -> Specimen:
    return _language("Gemma2", {**GATED, "head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 6}, "eager")


@_builder
def gemma3(**options: Any) -> Specimen:
    kind = {"head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 6, "layer_types": ["sliding_attention", "full_attention"]}
    return _language("Gemma3Text", {**GATED, **kind}, **options)


@_builder
def mixtral(**options: Any) -> Specimen:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm", "router_jitter_noise": 0.0}
    return _language("Mixtral", {**GATED, **experts}, **options)


@_builder
def qwen3_moe(**options: Any) -> Specimen:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "norm_topk_prob": True}
    kind = {"head_dim": 6, "experts_implementation": "batched_mm", "decoder_sparse_step": 1, "mlp_only_layers": []}
    return _language("Qwen3Moe", {**GATED, **kind, **experts}, **options)


@_builder
def llama_lora() -> Specimen:
    package = pytest.importorskip("peft", reason="peft is not installed (the extra 'models' has it)")
    model, inputs, options = llama()
    config = package.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in a way that is going out of use
        return package.get_peft_model(model, config).train(), inputs, options


@_builder
def mamba() -> Specimen:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 3, "use_cache": False}
    package = _transformers()
    return package.MambaForCausalLM(package.MambaConfig(**sizes)).train(), (_tokens(),), {}


@_builder
def bert(attention: str = "sdpa") -> Specimen:
    package = _transformers()
    config = package.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **ENCODER)
    model = package.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    return model.train(), (_tokens(),), {"attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long)}


@_builder
def t5() -> Specimen:
    package = _transformers()
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    config = package.T5Config(**sizes, decoder_start_token_id=0, use_cache=False)
    return package.T5ForConditionalGeneration(config).train(), (_tokens(),), {"decoder_input_ids": _tokens()[:, :5]}


@_builder
def vit(attention: str = "sdpa") -> Specimen:
    package = _transformers()
    config = package.ViTConfig(image_size=8, patch_size=4, num_labels=5, **ENCODER)
    model = package.AutoModelForImageClassification.from_config(config, attn_implementation=attention)
    return model.train(), (torch.randn(BATCH, 3, 8, 8),), {}


def _images(name: str, size: int, **options: Any) -> Specimen:
    model = _timm().create_model(name, num_classes=5, **options)
    return model.train(), (torch.randn(BATCH, 3, size, size),), {}


@_builder
def timm_resnet18() -> Specimen:
    return _images("resnet18", 32, channels=(4, 6, 8, 10), stem_width=4)


@_builder
def timm_convnext() -> Specimen:
    return _images("convnext_atto", 32, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))


@_builder
def timm_efficientnet() -> Specimen:
    family = _timm().models.efficientnet
    model = family._gen_efficientnet("efficientnet_b0", channel_multiplier=0.125, depth_multiplier=0.5, num_classes=5)
    return model.train(), (torch.randn(BATCH, 3, 32, 32),), {}


@_builder
def timm_vit() -> Specimen:
    return _images("vit_tiny_patch16_224", 16, img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3)


@_builder
def timm_mixer() -> Specimen:
    model = _timm().models.MlpMixer(num_classes=5, img_size=16, patch_size=4, embed_dim=12, num_blocks=2)
    return model.train(), (torch.randn(BATCH, 3, 16, 16),), {}


@_builder
def timm_swin() -> Specimen:
    return _images(
        "swin_tiny_patch4_window7_224", 32, img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 3)
    )
