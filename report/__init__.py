"""What a run folder tells afterwards: the HTML report."""
