"""Worlds that an agent acts in over many turns, the tools it acts with, and how an episode is played."""
