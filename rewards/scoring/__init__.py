"""The detector's caption, and the rules that turn detections into a score.

detector_caption   a prompt's objects as one caption
detections         existence, relation and count by the paper's rules
t2i_r1_code        the same by the rules of T2I-R1's released code
"""
