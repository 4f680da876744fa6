"""The running system.

cli, check, generate, export, report   the commands   loop, rollout        the training loop, one group's way
job                            a run's life          pool, worker         replicas and the process of each
system                         every part, wired     learner_ranks        the learner's processes
config                         the run config        held_out, step_row   what is measured
session                        the Ray cluster       telemetry, console   what is shown
metrics_catalogue              every metric          observer             asks processes how they do
report_*, chart, templates/    the report's parts    environment_facts    what a run ran on
"""
