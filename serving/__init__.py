"""Uses of a policy outside a run: drawing and export.

source   which policy draws
draw     `bicot generate`: pictures of prompts, by the actors that a run has in its pools, in this process
export   `bicot export`: a run's policy, or any checkpoint, in either layout of Janus

Both accept a run folder with an exported policy; a run exports its policy at its end.
"""
