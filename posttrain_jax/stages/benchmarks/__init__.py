"""Benchmarks: local files read as questions with their graders, answered by an engine, and scored."""
