"""What a picture is worth: reward models, their Ray Serve services, and the ensemble that asks them all.

A reward is a class with `score(pictures, prompts)`, named in the run config by its import path (`base` shows one of
your own); each runs as a Serve deployment of its own, and `ensemble.score_group` asks all of them at once.

core      base, config, ensemble      the interface, the settings, and who asks
          http_body                   a request as bytes
models/   the reward models, and tiny random ones
scoring/  from detections to a score, by the paper's rules and by the released code's
shell     service, replica, client    Ray Serve: started and closed, one process, and who asks it

docs/rewards.md says what each scores, from which files.

Gotchas:

- A reward that fails is *missing* (None), never 0: see `ensemble`.
- The paper's IoU rule, taken at its word, pays for overlap: two boxes that nearly coincide score close to 1 when
  their centres differ by a hair in the right direction. A detector that finds one object under two labels can be
  exploited that way; `scoring.detections.without_twins` suppresses them.
- Modules of `models/` import torch, transformers and httpx inside functions: the driver checks options without them.
"""
