"""Models as judges: what is asked of them, how their verdicts are read, and what reward those make."""
