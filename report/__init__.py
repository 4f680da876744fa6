"""The HTML report of run folders: one file that opens offline. Needs neither Ray nor a live run.

page     the file itself, of one run or several      runs     the folders' contents, grouped by config
tables   runs, held-out scores, seconds              curves   the charts of a report
samples  the same prompts at every scoring           chart    one line chart, as inline SVG
files    what a run's files have to hold

`templates/` holds the HTML. Gotcha: a folder may belong to a run that is still going, or was cut short.
"""
