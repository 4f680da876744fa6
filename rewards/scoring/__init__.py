"""From detections to a score: by the paper's rules, and by those of its released code."""
