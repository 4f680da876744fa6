"""What a detector is asked, and from its detections to a score.

detector_caption   a prompt's objects as one caption
detections         existence, relation and count by the paper's rules
t2i_r1_code        the same by the rules of T2I-R1's released code
"""
