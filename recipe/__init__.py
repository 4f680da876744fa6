"""What a run asks for, and where it lives: its config, checks, and folder."""
