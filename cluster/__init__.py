"""The running system.

cli                            the commands: check, train (job), rehearsal, generate, export, report
job, system                    a run's life          loop, rollout        the training loop, one group's way
config, session                run config, Ray       pool, worker         replicas and the process of each
learner_ranks                  its processes         held_out, step_row   what is measured
metrics_*, row_metrics         every metric          telemetry, console   what is shown
observer, trackers             who asks, who tells   memory               what each pool needs of its GPU
report_*, chart, templates/    the report's parts    environment_facts    what a run ran on
"""
