"""How a measurement ends other than well. Each class is one status of the record."""

from harness.trials import Status


class TrialFailure(Exception):
    """A measurement that ended with a status of its own; the message goes into the record."""

    status: Status = "error"


class Unsupported(TrialFailure):
    """The model, task or machine cannot do what the trial asks (a missing kernel, too short data)."""

    status = "unsupported"


class Unpredictable(Unsupported):
    """The code looks at values, which tensors without data do not have: what it costs is known once it has run."""


class WrongOutput(TrialFailure):
    """The output differs from the reference beyond the tolerance: no speed is given."""

    status = "wrong"


class NonFiniteLoss(TrialFailure):
    """Training produced a loss that is NaN or infinite."""


class CutShort(TrialFailure):
    """Stopped in time with its state saved: the same command goes on from there, and its record is replaced."""

    status = "timeout"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that host or device memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # PyTorch's CPU allocator raises a plain RuntimeError.
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower())
