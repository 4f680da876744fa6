"""What a picture is worth: reward models, their Ray Serve services, and the ensemble that asks them all.

A reward is a class with `score(pictures, prompts)`, named in the run config by its import path (`base` shows one of
your own); each runs as a Serve deployment of its own, and `ensemble.score_group` asks all of them at once.
Core, without Ray: `base`, `detections`, `ensemble`, `http_body`. Shell: `service`, `replica`, `client`.

Gotchas:

- A reward that fails is *missing* (None), never 0: see `ensemble`.
- The paper's IoU rule, taken at its word, pays for overlap: two boxes that nearly coincide score close to 1 when
  their centres differ by a hair in the right direction. A detector that finds one object under two labels can be
  exploited that way; suppress such twins in the detector.
"""
