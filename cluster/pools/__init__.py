"""The processes of a run, and the weights between them.

ray_session      the Ray cluster: joined, or started     ray_environment  what Ray reads when it is imported
pool             replicas, deadlines, replacements       worker           the process of one replica
rollout_pools    SemanticPool and ImagePool: what callers see, with its types
learner_ranks    the learner: calls go to every rank     weight_sync      a new version for every actor
"""
