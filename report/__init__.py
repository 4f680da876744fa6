"""What run folders tell afterwards: one HTML file that opens offline. Needs no Ray, and no run that is alive.

page     the file itself, of one run or several      runs     what folders hold, in groups that differ by seed
tables   runs, held-out scores, seconds              curves   the charts of a report
samples  the same prompts at every scoring           chart    one line chart, as inline SVG

`templates/` holds the HTML. Gotcha: a folder may belong to a run that is under way, or was cut short.
"""
