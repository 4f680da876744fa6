"""The reward models, and random ones in the same layouts to try them with."""
