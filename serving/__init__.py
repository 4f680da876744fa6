"""A policy that draws without a run, and leaves it.

source   which policy draws
draw     `bicot generate`: pictures of prompts, by the actors that a run has in its pools, in this process
export   `bicot export`: a run's policy, or any checkpoint, in either layout of Janus

Both take a run folder whose policy was exported, which a run does at its end.
"""
