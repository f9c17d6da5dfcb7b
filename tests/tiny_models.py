"""Tiny models of the classes that the examples serve, with random weights, built and saved as the hub has them.

The real weights cannot be fetched where the tests run. A tiny model goes the same way: files in a folder,
`from_pretrained`, tokenizer, model; only what it answers means nothing. It answers the same thing every time.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

# Words that the tiny DistilBERT knows; others it spells.
WORDS = ["a", "bad", "day", "good", "is", "it", "lovely", "not", "the", "very", "what"]
# Pixels of a side of an image as the tiny SAM sees it.
SIDE = 64


def sentiment(folder: Path) -> None:
    """Save a DistilBERT of two layers for two labels, and a WordPiece tokenizer for it."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    DistilBertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
        n_layers=2,
        n_heads=2,
        dim=32,
        hidden_dim=64,
        # Wide enough that texts differ in their scores.
        initializer_range=0.5,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)


def segment_anything(folder: Path) -> None:
    """Save a SAM of two layers for images of `SIDE` pixels, and its image processor."""
    import torch
    from transformers import (
        SamConfig,
        SamImageProcessorPil,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    patch, width = 8, 32
    vision = SamVisionConfig(
        hidden_size=width,
        output_channels=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=patch,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=width // 2,
        mlp_dim=64,
    )
    prompts = SamPromptEncoderConfig(hidden_size=width, image_size=SIDE, patch_size=patch)
    masks = SamMaskDecoderConfig(
        hidden_size=width, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32, num_hidden_layers=2
    )
    torch.manual_seed(0)
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks))
    for parameter in model.parameters():
        # Wide enough that prompts differ in their masks, and masks in their scores.
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    SamImageProcessorPil(**sizes).save_pretrained(folder)


def stable_diffusion(folder: Path) -> None:
    """Save a Stable Diffusion pipeline for pictures of 64 pixels, and a tokenizer that knows bytes only."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    first, last = len(tokens) - 2, len(tokens) - 1
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=first,
        eos_token_id=last,
        pad_token_id=last,
        initializer_range=0.5,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    # Four sizes of blocks, as the real one has: a latent is an eighth as wide as its picture.
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=unet,
        scheduler=PNDMScheduler(skip_prk_steps=True, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


# The example, the variable that tells it where its model is, and what builds one.
MODELS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "segment_anything": ("SAM_MODEL", segment_anything),
    "sentiment": ("SENTIMENT_MODEL", sentiment),
    "stable_diffusion": ("DIFFUSION_MODEL", stable_diffusion),
}


def environment(example: str, folder: Path) -> dict[str, str]:
    """Build the tiny model of an example, and return the variables that make its server load it.

    Args:
        example: the name of the example; one that needs no model from the hub needs no variable.
        folder: where to save the model.
    """
    if example not in MODELS:
        return {}
    import torch

    variable, build = MODELS[example]
    # One thread, here and in the server: several wait for each other as soon as the cores have something else to do,
    # which made tiny models ten times slower.
    torch.set_num_threads(1)
    build(folder)
    # And what is not in the folder must not be looked for elsewhere.
    return {variable: str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
