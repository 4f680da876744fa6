"""Uses of a policy outside a run: drawing and export.

source   the policy to draw with
draw     `bicot generate`: pictures of prompts, drawn in this process by the same actors that a run's pools use
export   `bicot export`: a run's policy, or any checkpoint, in either layout of Janus

Both accept a run folder with an exported policy; a run exports its policy at its end.
"""
