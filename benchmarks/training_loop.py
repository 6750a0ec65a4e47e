"""The training loop: models of one kind take each step together, on CUDA as the replay of one captured graph.

The graph holds a whole step of every model: examples picked, forward, backward, clipping, optimizer. Each model has a
stream of its own in it, so that kernels too small for a GPU overlap with those of the other seeds. The host looks at
the device at the points of the curves and about twice a second, and nowhere else.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.training_learner import Learner
from harness import CutShort

WARM_UP_STEPS = 3
"""Before a capture: libraries set themselves up, and kernels are chosen and compiled, in the first steps."""
LOOK_S = 0.5
SAVE_EVERY_S = 30.0


def train(
    learners: Sequence[Learner],
    *,
    deadline: float = math.inf,
    save: Callable[[Learner], None] | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> None:
    """Take all that is left of everyone's steps; a model whose loss is not finite stops, with its ``failure``.

    Args:
        learners: one model, task and protocol, of several seeds. Those that are behind, cut at different steps,
            catch up first.
        deadline: (``time.monotonic``) to be stopped at, with everything saved.
        save: writes a learner's state.

    Raises:
        CutShort: at the deadline.
    """
    watch = _Watch(deadline=deadline, save=save, save_every_s=save_every_s)
    while active := [learner for learner in learners if not learner.finished]:
        behind = min(learner.done for learner in active)
        together = [learner for learner in active if learner.done == behind]
        until = min((learner.done for learner in active if learner.done > behind), default=together[0].steps)
        lockstep = Lockstep(together)
        for learner in together:
            learner.log.captured = lockstep.describe()
        _advance(lockstep, min(until, together[0].stage.end), watch)
        lockstep.release()


def _advance(lockstep: "Lockstep", until: int, watch: "_Watch") -> None:
    """Up to step ``until``, or to the first failure: the others then go on in a graph without that model."""
    learners, every = lockstep.learners, lockstep.learners[0].curve_every
    while lockstep.done < until:
        last = learners[0].steps
        stop = min(until, last, (lockstep.done // every + 1) * every)
        lockstep.run(stop, watch)
        finite = [learner.is_finite() for learner in learners]
        for learner, is_finite in zip(learners, finite, strict=True):
            if is_finite and (learner.done % every == 0 or learner.done == last):
                learner.add_to_curves()
        watch.look([learner for learner in learners if learner.failure is None])
        if not all(finite):
            return


class _Watch:
    """When to save, and when to stop."""

    def __init__(self, *, deadline: float, save: Callable[[Learner], None] | None, save_every_s: float) -> None:
        self._deadline, self._save, self._save_every_s = deadline, save, save_every_s
        self._next_save = time.monotonic() + save_every_s

    def is_due(self) -> bool:
        return time.monotonic() >= min(self._deadline, self._next_save)

    def look(self, learners: Sequence[Learner]) -> None:
        """Between steps. Raises CutShort at the deadline, unless every step has been taken."""
        now, left = time.monotonic(), [learner for learner in learners if not learner.finished]
        if now < min(self._deadline, self._next_save) or not left:
            return
        if self._save is not None:
            for learner in learners:
                self._save(learner)
        self._next_save = time.monotonic() + self._save_every_s
        if now >= self._deadline:
            raise CutShort(
                f"cut at step {left[0].done} of {left[0].steps} by its time; run the same command again to go on"
                + ("" if self._save else " (nothing was saved: no folder to save in)")
            )


class Lockstep:
    """Learners at one step, which take the next ones together.

    On CUDA their step is captured; what cannot be captured runs eagerly, and :meth:`describe` says why.
    Weights and states are what they were before.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = list(learners)
        self.device = learners[0].device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_because = "a CPU has no CUDA graphs"
        if self.device.type == "cuda":
            self._streams = [torch.cuda.Stream(self.device) for _ in self.learners]
            self._capture()

    @property
    def done(self) -> int:
        return self.learners[0].done

    def describe(self) -> dict[str, bool | str]:
        if self._graph is not None:
            return {"cuda_graph": True}
        return {"cuda_graph": False, "eager_because": self._eager_because}

    def release(self) -> None:
        """Give back what the captured graph holds, before the next one is captured at another length."""
        if self._graph is None:
            return
        self._graph = None
        for learner in self.learners:
            learner.drop_gradients()
        torch.cuda.empty_cache()

    def run(self, until: int, watch: _Watch) -> None:
        """Steps up to ``until``, fewer if the watch is due; then the device has done them, and their time is known."""
        first, began = self.done, time.perf_counter_ns()
        next_look = time.monotonic() + LOOK_S
        on_gpu = self.device.type == "cuda"
        while self.done < until:
            step_began = time.perf_counter_ns()
            for learner in self.learners:
                learner.prepare()
            if self._graph is not None:
                self._graph.replay()
            else:
                for learner in self.learners:
                    learner.step()
            for learner in self.learners:
                learner.done += 1
                if not on_gpu:
                    learner.log.step_ms.append((time.perf_counter_ns() - step_began) / 1e6)
            if on_gpu and time.monotonic() >= next_look:  # or the host would run far ahead of the clock
                torch.cuda.synchronize(self.device)
                next_look = time.monotonic() + LOOK_S
            if watch.is_due():
                break
        if on_gpu:
            torch.cuda.synchronize(self.device)
        elapsed_ns = time.perf_counter_ns() - began
        for learner in self.learners:
            learner.log.train_s += elapsed_ns / 1e9
            if on_gpu:
                learner.log.step_ms.append(elapsed_ns / 1e6 / (self.done - first))

    def _capture(self) -> None:
        for learner in self.learners:
            learner.prepare()
        before = [{name: tensor.clone() for name, tensor in learner.tensors().items()} for learner in self.learners]
        for _ in range(WARM_UP_STEPS):
            self._each_on_its_stream()
            self._put_back(before)  # also the counter, which must not leave its tables
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph):
                self._each_on_its_stream()
        except RuntimeError as error:
            from benchmarks.generation_loops import ran_out_of_memory  # no other training needs what it imports

            if ran_out_of_memory(error):
                raise
            torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
            self._eager_because = f"the step cannot be captured ({(str(error).strip().splitlines() or [''])[0]})"
            for learner in self.learners:
                learner.drop_gradients()
        else:
            self._graph = graph
        self._put_back(before)

    def _each_on_its_stream(self) -> None:
        """Fork, a step of each, join: the shape of the captured graph."""
        current = torch.cuda.current_stream(self.device)
        for learner, stream in zip(self.learners, self._streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                learner.step()
        for stream in self._streams:
            current.wait_stream(stream)

    def _put_back(self, before: Sequence[dict[str, Tensor]]) -> None:
        for learner, tensors in zip(self.learners, before, strict=True):
            learner.put_back(tensors)
