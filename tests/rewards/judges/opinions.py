"""Judges whose mind is known."""

from posttrain_jax.rewards.judges.judge import Comparison, Grade, JudgeFailed


class Scripted:
    """Compares by ``better(a, b)``, grades by ``grades[answer]``; counts what it is asked."""

    def __init__(self, better=None, grades=None):
        self.better, self.grades, self.asked = better, grades, []

    async def compare(self, question, a, b, rubrics, seed):
        self.asked.append((a, b, seed))
        verdict = self.better(a, b)
        if verdict == "failed":
            raise JudgeFailed("away")
        return Comparison(verdict)

    async def grade(self, question, answer, reference, seed):
        self.asked.append((answer, reference, seed))
        verdict = self.grades[answer]
        if verdict == "failed":
            raise JudgeFailed("away")
        return Grade(verdict)


def by_number(a, b):
    return (float(a) > float(b)) - (float(a) < float(b))
