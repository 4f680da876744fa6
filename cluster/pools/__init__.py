"""The processes of a run: its Ray session, pools, learner ranks, and the weights between them."""
