"""Real models at their real sizes: what is read of them, what is derived, and in what time. Writes docs/zoo.md.

Run ``python benchmarks/zoo.py`` with the extra ``models`` installed (and timm's stand-in for torchvision, which the tests have); some
minutes. Nothing is downloaded and no weight is made: models are built on the meta device from their configurations. That every generator
is true is tested on the same architectures at small size, in float64 (tests/symbolic/test_real_models.py).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import noetherflow as nf
from noetherflow.numeric.progress import shown

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.torchvision_stub import torchvision_or_stub  # noqa: E402

TOKENS = 16
HEAD = """# Real models

Built on the meta device from their configurations at real size, random weights, traced through `torch.export` in training form ({tokens}
tokens or an image). *Opaque*: operations on a path from a parameter to an output that nothing was allowed through. *Generators*: dimension
of the group of all continuous symmetries found, of the outputs (no loss). *Charges*: those that gradient descent conserves in the limit of
small steps; rotations, phases and affine shifts have none. Seconds of processor time, one core: `torch.export` and
reading it, then deriving symmetries, then laws for SGD.

Every generator of the same architectures at small size is checked on the model itself in float64, infinitesimally and as a finite
transformation (`tests/symbolic/test_real_models.py`). Made by `python benchmarks/zoo.py`.

| model | parameters | operations | opaque | families | generators | charges | trace | symmetries | laws |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""


@dataclass(frozen=True, slots=True)
class Specimen:
    """A model by name, and how it is built with its inputs."""

    name: str
    build: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]


def language(kind: str, head: str = "ForCausalLM", further: dict[str, Any] | None = None, **configuration: Any) -> Callable[[], Any]:
    def build() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        import transformers

        config = getattr(transformers, f"{kind}Config")(use_cache=False, **configuration)
        tokens = torch.zeros(1, TOKENS, dtype=torch.long)
        keywords = dict.fromkeys(further or {}, tokens)
        return getattr(transformers, f"{kind}{head}")(config), (tokens,), keywords

    return build


def vision(kind: str) -> Callable[[], Any]:
    def build() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        import transformers

        model = getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")())
        return model, (torch.zeros(1, 3, 224, 224),), {}

    return build


def timm(name: str, **options: Any) -> Callable[[], Any]:
    def build() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        with torchvision_or_stub():
            import timm as package
        return package.create_model(name, **options), (torch.zeros(2, 3, 224, 224),), {}

    return build


LLAMA = {
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
ZOO = (
    Specimen("GPT-2 (124M)", language("GPT2", "LMHeadModel", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    Specimen("Llama-3-70B", language("Llama", hidden_size=8192, num_hidden_layers=80, **LLAMA)),
    Specimen("Qwen3 (default configuration)", language("Qwen3")),
    Specimen("Gemma-2 (default configuration)", language("Gemma2")),
    Specimen("Mixtral-8x7B", language("Mixtral", experts_implementation="batched_mm")),
    Specimen("BERT-base", language("Bert", "ForSequenceClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    Specimen("T5-small", language("T5", "ForConditionalGeneration", {"decoder_input_ids": True}, dropout_rate=0.0)),
    Specimen("Mamba-130M, 4 of its layers", language("Mamba", num_hidden_layers=4)),
    Specimen("ViT-B/16 (transformers)", vision("ViT")),
    Specimen("ResNet-50 (timm)", timm("resnet50")),
    Specimen("ConvNeXt-T (timm)", timm("convnext_tiny")),
    Specimen("EfficientNet-B0 (timm)", timm("efficientnet_b0")),
    Specimen("ViT-B/16 (timm)", timm("vit_base_patch16_224")),
    Specimen("Mixer-B/16 (timm)", timm("mixer_b16_224")),
    Specimen("Swin-T (timm)", timm("swin_tiny_patch4_window7_224", drop_path_rate=0.0)),
)


def row(specimen: Specimen) -> str:
    """One line of the table."""
    with torch.device("meta"):
        model, inputs, keywords = specimen.build()
    begun = time.process_time()
    graph = nf.trace(model.train(), *inputs, kwargs=keywords)
    traced = time.process_time()
    found = nf.symmetries(graph)
    derived = time.process_time()
    laws = nf.derive(graph, found=found)
    ended = time.process_time()
    parameters = sum(p.numel() for p in model.parameters())
    counts = [f"{n:,}" for n in (parameters, len(graph), len(found.opaque), len(found), found.dimension, laws.charges)]
    seconds = [f"{t:.1f}" for t in (traced - begun, derived - traced, ended - derived)]
    for why in sorted(set(found.opaque.values())):
        print(f"  {specimen.name}: opaque: {why}", file=sys.stderr)
    return f"| {' | '.join([specimen.name, *counts, *seconds])} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", default="", help="models whose name holds this")
    options.add_argument("--output", type=Path, default=ROOT / "docs" / "zoo.md")
    chosen = options.parse_args()
    zoo = [specimen for specimen in ZOO if chosen.only.lower() in specimen.name.lower()]
    rows = [row(specimen) for specimen in shown(zoo, "deriving", total=len(zoo))]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tail = f"\n\ntorch {torch.__version__}; largest memory of the whole run {memory:.1f} GiB.\n"
    text = HEAD.format(tokens=TOKENS) + "\n".join(rows) + tail
    chosen.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
