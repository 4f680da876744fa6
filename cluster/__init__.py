"""The running system. Read the modules in this order: each calls the next.

cli            the commands: check, train, rehearse, generate, export, report
run            a run from start to end: check, start, score, train, score, report
system         all parts of a run, started in parallel and closed in order
loop           the training loop: admit, roll out, learn, publish
rollout        the stages of one group: CoT, picture, rewards
prompt_order   which prompt the run visits when
console        the progress display

`pools/` has the processes, `monitor/` the metrics.
"""
