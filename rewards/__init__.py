"""What a picture is worth: reward models, their Ray Serve services, and the ensemble that asks them all.

A reward is a class with `score(pictures, prompts)`, named in the run config by its import path (`base` shows one of
your own); each runs as a Serve deployment of its own, and `ensemble.score_group` asks all of them at once.

core   base, config, ensemble   the interface and who asks     http_body    requests as bytes
       detections, t2i_r1_code  boxes to scores, by two rules   yes_no       answers to scores
models hps, clip, open_clip     human preference, CLIP          git_vqa      attributes
       grounding_dino, detector_caption   objects               orm, llava_qwen, judge   "does it fit?"
       checkpoint               files of all of them            tiny, tiny_tokenizers    random ones in their layouts
shell  service, replica, client

docs/rewards.md says what each scores, from which files.

Gotchas:

- A reward that fails is *missing* (None), never 0: see `ensemble`.
- The paper's IoU rule, taken at its word, pays for overlap: two boxes that nearly coincide score close to 1 when
  their centres differ by a hair in the right direction. A detector that finds one object under two labels can be
  exploited that way; `detections.without_twins` suppresses them.
- Modules with models import torch, transformers and httpx inside functions: the driver checks options without them.
"""
