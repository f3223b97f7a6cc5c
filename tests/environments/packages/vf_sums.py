"""An environment of the package verifiers: sums, with a tool that adds, a stop condition and two rewards."""

import verifiers.v1 as vf

__all__ = ["Sums"]


class Numbers(vf.TaskData):
    total: int


class Adder(vf.Toolset[vf.SharedToolsetConfig, vf.State]):
    @vf.tool
    def add(self, a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b


class Sum(vf.Task[Numbers]):
    @vf.stop
    async def third(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 3

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(self.data.total))

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) < 4)


class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Adder(vf.SharedToolsetConfig())]

    def load(self):
        for a in range(30):
            data = Numbers(prompt=f"{a} + 5?", system_prompt="Say the number.", total=a + 5)
            yield Sum(data, self.config.task)


if __name__ == "__main__":
    Adder.run()
