"""Rewards: reward models, their Ray Serve services, and the ensemble that calls them all.

A reward is a class with `score(pictures, prompts)`; the run config names its import path (`base` shows how to write
your own). Each reward runs as its own Serve deployment, and `ensemble.score_group` calls all of them at once.

core      base, config, ensemble      the interface, the settings, the calls to all rewards
          http_body                   a request as bytes
models/   the reward models, and tiny random ones
scoring/  from detections to a score, by the paper's rules and by the released code's
shell     service, replica, client    Ray Serve: start and stop, one process, its client

docs/rewards.md lists what each reward scores, and the files that it needs.

Gotchas:

- A reward that fails is *missing* (None), never 0: see `ensemble`.
- The paper's IoU rule rewards overlap: two boxes that nearly coincide score close to 1 if their centres differ
  slightly in the right direction. A policy can exploit this when a detector finds one object under two labels;
  `scoring.detections.without_twins` removes such boxes.
- Modules of `models/` import torch, transformers and httpx inside functions: the driver checks options without them.
"""
