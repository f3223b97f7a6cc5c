"""An environment of the package verifiers that answers each turn: a number is to be guessed, from higher and lower."""

import verifiers.v1 as vf

__all__ = ["Guesses", "Guessing"]


class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessesConfig(vf.TasksetConfig):
    highest: int = 9


class Guessing(vf.Env[GuessConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment, tries = await interaction.turn(), 0
            while not segment.terminated:
                tries += 1
                if not segment.last_reply.isdecimal():
                    raise ValueError(f"no number: {segment.last_reply}")
                secret, guess = int(task.data.name), int(segment.last_reply)
                if guess == secret or tries == 5:
                    break
                segment = await interaction.turn("higher" if guess < secret else "lower")
        interaction.trace.record_reward("found", 1.0 / tries if guess == secret else 0.0, 1.0)


class Guesses(vf.Taskset[vf.Task, GuessesConfig]):
    INFINITE = True

    def load(self):
        number = 0
        while True:
            secret = str(number % (self.config.highest + 1))
            yield vf.Task(vf.TaskData(name=secret, prompt=f"Round {number}: a number up to {self.config.highest}"))
            number += 1
