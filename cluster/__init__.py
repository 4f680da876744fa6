"""The running system. Read it downwards: each calls the next.

cli            the commands: check, train, rehearse, generate, export, report
run            a run's life: check, start, score, train, score, report
system         every part of it, started side by side and closed in order
loop           the training loop: admit, roll out, learn, publish
rollout        one group's way: CoT, picture, rewards
prompt_order   which prompt is visited when
console        what a person sees meanwhile

`pools/` are the processes, `monitor/` what they show of themselves.
"""
