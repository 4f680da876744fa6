"""A policy that draws without a run."""
