"""Agentic data made from nothing but seeds: tools evolved, agents and tasks drawn, trajectories verified."""
