"""Graders: each judges one kind of answer and returns a `Verdict`.

They read answers as data. What an answer says of itself, or of the grader, is never followed.
"""
