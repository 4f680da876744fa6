"""The processes of a run, and the weights between them.

ray_session      the Ray cluster: joined, or started     ray_environment  settings that Ray reads at import
pool             replicas, deadlines, replacements       worker           the process of one replica
rollout_pools    SemanticPool and ImagePool: typed methods for callers
learner_ranks    the learner: calls go to every rank     weight_sync      sends a new version to every actor
"""
