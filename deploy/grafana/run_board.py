"""The dashboard *Run*: does the run learn, how fast, and what is the bottleneck."""

from __future__ import annotations

from deploy.grafana.panels import Board, curves, mean_seconds, metric, number, quantile, rate, total

OF_ALL = 'task_type="all"'

_IDLE = " / ".join((
    total(rate("bicot_step_phase_seconds_total", 'phase="wait_for_rollout"')), total(rate("bicot_step_seconds_sum"))
))  # fmt: skip

_NOW = (
    number("Step", "Steps done, of those planned.", "none",
           (metric("bicot_step"), "done"), (metric("bicot_planned_steps"), "planned")),
    number("Pictures/s", "Sampled, held-out ones included.", "none", (rate("bicot_pictures_total"), "pictures/s")),
    number("Held-out", "Newest score over every held-out picture.", "percentunit",
           (metric("bicot_held_out_score", 'family="all"'), "{{split}}")),
    number("Since the last step", "Grows while no step ends.", "s",
           (f"time() - {metric('bicot_step_timestamp_seconds')}", "seconds")),
    number("Since the last checkpoint", "The work that a failure would lose.", "s",
           (f"time() - {metric('bicot_checkpoint_timestamp_seconds')}", "seconds")),
    number("Restarts", "Processes replaced in any pool.", "none",
           (total(metric("bicot_pool_restarts_total")), "restarts")),
)  # fmt: skip

_LEARNS = (
    curves("Reward", "Mean of each reward over the newest step's members.", "none",
           (metric("bicot_reward_mean", OF_ALL), "{{reward}}")),
    curves("Held-out score", "By prompt family; 'all' is the mean over every picture.", "none",
           (metric("bicot_held_out_score"), "{{split}} {{family}}")),
    curves("KL to the reference", "k3 estimate per token. A jump means that the policy drifts.", "none",
           (metric("bicot_kl_nats"), "{{segment}}")),
    curves("Entropy", "Of the next token, in nats. Near 0 the policy has stopped exploring.", "none",
           (metric("bicot_entropy_nats"), "{{segment}}")),
    curves("Groups without signal",
           "Share of the groups whose members all got the same: by reward, and by advantage.",
           "percentunit", (metric("bicot_reward_zero_spread_ratio", OF_ALL), "{{reward}}"),
           (f"{rate('bicot_trained_flat_groups_total')} / {rate('bicot_trained_groups_total')}", "advantage")),
    curves("Gradient norm", "Before clipping.", "none", (metric("bicot_grad_norm"), "norm")),
    curves("Loss", "Per token, in the newest step.", "none", (metric("bicot_loss"), "loss")),
    curves("Clipped share", "Of the tokens.", "percentunit", (metric("bicot_clip_ratio"), "{{segment}}")),
    curves("Length of the CoT", "Tokens of a member, by segment.", "none",
           (metric("bicot_cot_tokens"), "{{segment}}")),
    curves("CoTs cut off", "Share of the semantic CoTs that semantic.max_tokens cut off.", "percentunit",
           (metric("bicot_cot_cut_off_ratio"), "cut off")),
    curves("Largest importance ratio", "New to behaviour probability of a token; far from 1, data is stale.", "none",
           (metric("bicot_importance_max_ratio"), "largest {{segment}}"),
           (metric("bicot_importance_mean_ratio"), "mean {{segment}}")),
    curves("Log-prob gap and behaviour KL", "On-policy both are noise; otherwise actors and learner differ.", "none",
           (metric("bicot_logprob_gap_max_nats"), "largest gap, {{segment}}"),
           (metric("bicot_behaviour_kl_nats"), "KL, {{segment}}")),
    curves("Learning rate", "Of the newest step.", "none", (metric("bicot_learning_rate"), "rate")),
    curves("Members that do not train", "Share of the members with missing rewards.", "percentunit",
           (f"{rate('bicot_trained_masked_members_total')} / {rate('bicot_trained_members_total')}", "members"),
           (f"{rate('bicot_trained_masked_groups_total')} / {rate('bicot_trained_groups_total')}", "whole groups")),
)  # fmt: skip

_FAST = (
    curves("Pictures/s", "Sampled by all image actors.", "none", (rate("bicot_pictures_total"), "pictures/s")),
    curves("Seconds of a step", "Mean, and nine of ten.", "s", (mean_seconds("bicot_step_seconds"), "mean"),
           (quantile(0.9, "bicot_step_seconds"), "p90")),
    curves("Seconds of a step by phase", "Mean of the steps in the window.", "s",
           (f"{total(rate('bicot_step_phase_seconds_total'), 'phase')} / scalar({rate('bicot_steps_total')})",
            "{{phase}}"),
           stacked=True),
    curves("Tokens drawn/s", "By pool.", "none", (total(rate("bicot_tokens_total"), "pool"), "{{pool}}")),
    curves("Tokens trained/s", "Of the learner's own time, by segment.", "none",
           (f"{rate('bicot_trained_tokens_total')} / scalar({rate('bicot_learner_train_seconds_total')})",
            "{{segment}}")),
    curves("MFU", "Model FLOPs of a step, divided by the peak of the learner's devices.", "percentunit",
           (metric("bicot_mfu_ratio"), "MFU"), empty="the peak of a CPU is not known"),
    curves("Micro-batches", "Of a rank, in the newest step.", "none",
           (metric("bicot_micro_batches"), "micro-batches")),
)  # fmt: skip

_HOLDS_BACK = (
    curves("Busy share", "Of the learner and each pool's engines, mean over replicas. The bottleneck is near 1.",
           "percentunit", (rate("bicot_learner_train_seconds_total"), "learner"),
           (f"avg by (pool) ({rate('bicot_engine_busy_seconds_total')})", "{{pool}}"),
           (rate("bicot_reward_service_busy_seconds_total"), "reward {{reward}}")),
    curves("Learner idle for rollout", "Share of the steps' time.", "percentunit", (_IDLE, "waiting")),
    curves("Groups by stage", "Groups in each stage now; the stage with the most groups is the slow one.", "none",
           (metric("bicot_stage_groups"), "{{stage}}"), stacked=True),
    curves("Staleness", "Versions between sampling and training, mean and bound.", "none",
           (metric("bicot_staleness_versions"), "{{segment}}"), (metric("bicot_staleness_limit_versions"), "bound")),
    curves("Buffer", "Groups that wait for the learner.", "none", (metric("bicot_buffer_depth"), "depth"),
           (metric("bicot_buffer_capacity"), "capacity")),
    curves("Weight sync", "Mean seconds: publishing by the learner, applying by all actors.", "s",
           (mean_seconds("bicot_weights_publish_seconds"), "publish"),
           (mean_seconds("bicot_weights_apply_seconds"), "apply")),
)  # fmt: skip

BOARD = Board("bicot-run", "bicot: Run", "Does the run learn, how fast, and what holds it back.", {
    "Now": _NOW, "Does it learn?": _LEARNS, "How fast?": _FAST, "What holds it back?": _HOLDS_BACK,
})  # fmt: skip
