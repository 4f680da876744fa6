"""Tiny random Janus models of the true architecture, and complete checkpoint folders, for tests and rehearsals."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from policy.checkpoint import Layout
from policy.config import INSTRUCTION
from policy.export import save_hf, save_original

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
_SPECIAL = [BOS, EOS, PAD, "<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"]
_WORDS = "a photo of two three red green blue yellow circle square triangle left right above below dog cat car bench"
_CHAT = (
    "{% for message in messages %}{{ '<|User|>' if message.role == 'user' else '<|Assistant|>' }}: "
    "{{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


def tiny_janus(
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    positions: int = 512,
    image_vocab: int = 256,
    image_size: int = 48,
    vq_channels: int = 32,
    vq_multipliers: tuple[int, ...] = (1, 1, 2, 2),
) -> transformers.JanusForConditionalGeneration:
    """A randomly initialised Janus of the true architecture, of the given sizes, with an untied lm_head.

    A picture has (image_size / 2^(len(vq_multipliers) - 1))² tokens; VQ channels come in multiples of 32.
    """
    patch = 2 ** (len(vq_multipliers) - 1)
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            intermediate_size=intermediate or hidden * 8 // 3 // 32 * 32,
            max_position_embeddings=positions,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=image_size, patch_size=patch,
            projection_dim=hidden, num_image_tokens=(image_size // patch) ** 2,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            embed_dim=8, num_embeddings=image_vocab, latent_channels=vq_channels, base_channels=vq_channels,
            channel_multiplier=list(vq_multipliers), num_res_blocks=1, projection_dim=hidden,
            image_token_embed_dim=hidden,
        ),
        image_token_id=tokenizer.get_vocab().get("<image_placeholder>", tokenizer.pad_token_id),
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.JanusForConditionalGeneration(config)


def write_tiny_janus(folder: str | Path, layout: Layout = "hf", seed: int = 0) -> Path:
    """Write a complete random checkpoint in float32: config, weights, and a tokenizer of Janus-Pro's kind.

    Hidden 64, 2 layers, heads 32 wide, 1024 positions; 6x6 image tokens of 256 codes, 48x48 pixels; about 5 MB.
    Tokens and chat format are those of the real checkpoints, so `PolicyConfig`'s default templates fit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_janus(tokenizer, hidden=64, layers=2, heads=2, positions=1024)
    (save_hf if layout == "hf" else save_original)(model, tokenizer, folder)
    return folder


def tiny_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """A byte-level BPE of some 450 ids with Janus-Pro's special tokens; any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\r\n]"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512 - len(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [INSTRUCTION, "a photo of red green blue circle square triangle left right"], trainer
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=_SPECIAL[3:],
        model_max_length=16384,
        chat_template=_CHAT,
    )
