"""The reward models, and random models in the same layouts for tests and rehearsals.

hps, clip        human preference, and any CLIP      open_clip        HPS's file, as transformers' CLIP
grounding_dino   existence, relation, count          git_vqa          attributes, asked as questions
orm, llava_qwen  "does it fit the prompt?"           judge            the same, behind an endpoint
checkpoint       checks, counts and loads a folder   pixels           picture processors, looked up
yes_no           an answer as a share of yes         tiny, tiny_tokenizers  random models for rehearsals

A model of your own with a checkpoint: derive from `checkpoint.CheckpointReward`; docs/rewards.md shows a plain one.
Gotcha: torch, transformers and httpx are imported inside functions, so that a driver checks options without them.
"""
