"""What an entry of a suite may say, kind by kind; unknown keys and values that exclude each other are errors."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from harness import Direction, parse_length, parse_lengths

Device = Literal["cuda", "cpu"]


def _lengths(value: object) -> object:
    return parse_lengths(value) if isinstance(value, str) else value


def _length(value: object) -> object:
    return parse_length(value) if isinstance(value, str) else value


Lengths = Annotated[list[int], BeforeValidator(_lengths), Field(min_length=1)]
Length = Annotated[int, BeforeValidator(_length), Field(gt=0)]
PerModel = float | dict[str, float]
"""One value, or one a family or model, with ``default`` for the others."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    devices: list[Device] = Field(default=["cuda", "cpu"], min_length=1)
    """Where the entry applies: one file serves a GPU and a CPU, which bear different lengths."""
    dtype: str = "auto"
    time_limit_s: Annotated[float, Field(gt=0)] | dict[str, Annotated[float, Field(gt=0)]] = 60
    """One value, or one an operator, family or model, with ``default`` for the others."""


class _ModelEntry(_Entry):
    models: list[str] = Field(min_length=1)
    batch: int = Field(default=1, gt=0)
    seeds: list[int] = [0]


class SpeedEntry(_Entry):
    """Time and memory of one call against length, of models or of operators by their own names.

    The batch is one number, several, or what fills ``tokens``; lengths above those are left out then.
    """

    kind: Literal["speed"]
    level: Literal["operator", "block", "model", "ceiling"]
    models: list[str] = []
    """Names of models, or of ceilings at that level."""
    operators: list[str] = []
    width: int = Field(default=1024, gt=0)
    d_state: int = Field(default=16, gt=0)
    head_dim: int = Field(default=64, gt=0)
    batch: int = Field(default=1, gt=0)
    batches: list[Annotated[int, Field(gt=0)]] = []
    tokens: Length | None = None
    directions: list[Direction] = Field(min_length=1)
    lengths: Lengths
    seeds: list[int] = [0]
    sample_budget_s: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.models) == bool(self.operators):
            raise ValueError("give either models or operators, and at least one")
        if self.operators and self.level != "operator":
            raise ValueError(f"operators are measured at level: operator, not at level: {self.level}")
        sizes = {"width", "d_state", "head_dim"} & self.model_fields_set
        if sizes and not self.operators:
            raise ValueError(f"{', '.join(sorted(sizes))} belong to operators; a model has its own")
        if self.width % self.head_dim:
            raise ValueError(f"width={self.width} does not split into heads of head_dim={self.head_dim}; change one")
        batches = [key for key in ("batch", "batches", "tokens") if key in self.model_fields_set]
        if len(batches) > 1:
            raise ValueError(f"{' and '.join(batches)} exclude each other; keep one")
        if self.level == "ceiling" and (self.directions != ["forward"] or {"batches", "tokens"} & {*batches}):
            raise ValueError("a ceiling has direction forward and batch 1")
        return self


class GenerationEntry(_Entry):
    """Read a prompt, then generate: time, throughput and memory against batch; batch 0 searches the largest."""

    kind: Literal["generation"]
    models: list[str] = Field(min_length=1)
    batches: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    prompt: Length
    new_tokens: int = Field(gt=0)
    loops: list[Literal["cuda_graph", "eager", "transformers"]] = Field(min_length=1)
    seeds: list[int] = [0]
    sample_budget_s: float = Field(default=1.0, gt=0)


class Start(BaseModel):
    """The checkpoint that a trial starts from: that of its model, and of its own length and seed unless given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    seq_len: Length | None = None
    seed: int | None = None


def _start(value: object) -> object:
    return {"folder": value} if isinstance(value, str) else value


class AudioGenerationEntry(_Entry):
    """Sample raw audio from silence or from real prompts: time, memory, and the sound."""

    kind: Literal["audio_generation"]
    tasks: list[str] = Field(default=["audio"], min_length=1)
    models: list[str] = Field(min_length=1)
    batches: list[Annotated[int, Field(gt=0)]] = Field(min_length=1)
    prompt: Length = 1
    start: Literal["silence", "data"] = "silence"
    new_samples: int = Field(default=16_000, gt=0)
    loops: list[Literal["cuda_graph", "eager"]] = Field(min_length=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seeds: list[int] = [0]
    init_from: Annotated[Start | None, BeforeValidator(_start)] = None
    """Checkpoints of the models, with the length that they were trained at; random weights if not given."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.init_from is not None and self.init_from.seq_len is None:
            raise ValueError("init_from needs seq_len here, the length that the checkpoints were trained at; add it")
        return self


class TrainingEntry(_ModelEntry):
    """Train at one length, or at each of several, under a budget of steps; score at many.

    ``dtype`` is that of the arithmetic: bfloat16 is autocast over float32 weights. Whether the loss is on answers
    alone or on every position is the task's own option (``task_options: {loss: every}``). ``lengths`` instead of
    ``seq_len`` is a trial each, and what ``--lengths`` then picks from; ``tokens`` instead of ``batch`` gives each as
    many sequences as fill that number of tokens a step.
    """

    kind: Literal["training"]
    tasks: list[str] = Field(min_length=1)
    task_options: dict[str, Any] = {}
    seq_len: Length | None = None
    lengths: Lengths | None = None
    tokens: Length | None = None
    microbatches: int = Field(default=1, gt=0)
    """How many parts of a step's sequences go one after the other, for the memory of one; the step stays the same.
    Of a step of fewer sequences, each is a part."""
    steps: int = Field(gt=0)
    length_warmup: Lengths | None = None
    """Shorter lengths that are trained at first, at the same number of tokens a step; those below the trial's own."""
    length_warmup_steps: int | None = Field(default=None, gt=0)
    """Of ``steps``, how many each of those lengths gets."""
    init_from: Annotated[Start | None, BeforeValidator(_start)] = None
    """Checkpoints to start from, a folder alone or with choices."""
    lr: PerModel
    optimizer: Literal["adam", "adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: float | None = Field(default=None, ge=0)
    """Where the cosine ends; at a tenth of the learning rate if not given."""
    grad_clip: float = Field(default=1.0, ge=0)
    tf32: bool = True
    """Whether float32 products on CUDA may use TF32."""
    curve_every: int | None = Field(default=None, gt=0)
    """Steps between two points of the curves, each with a validation; a sixtieth of the steps if not given."""
    validation_examples: int = Field(default=64, gt=0)
    """Size of the fixed validation set, the same for every model and seed."""
    validation_loss: bool = False
    """Whether each point of the curves has the loss on the validation set too."""
    select: Literal["last", "validation"] = "last"
    """Whose weights are kept and scored: the last step's, or those of the point of the curves that did best on the
    validation set, by accuracy where the task has it, else by the loss."""
    answers: Literal["all", "labels"] = "all"
    """Among which tokens a classification task's answer is: the whole vocabulary, or its labels, as if they had a head
    of their own."""
    threshold: float = Field(default=0.95, gt=0, le=1)
    """Accuracy on the validation set that counts as learned (``steps_to_threshold``)."""
    seeds_together: int = Field(default=1, gt=0)
    """How many seeds train at a time on a GPU, in one process: none of them then says how fast it was."""
    score_lengths: Lengths | None = None
    """The training length always is; it alone if this is not given."""
    score_tokens: int = Field(default=2**16, gt=0)
    score_regions: int = Field(default=8, gt=0)
    """Stretches of the test data, at least, each as long as the longest score, that every length is scored on."""
    min_examples: int = Field(default=4, gt=0)
    max_examples: int = Field(default=256, gt=0)
    score_budget_s: float = Field(default=60, gt=0)
    threads: int | None = Field(default=None, gt=0)
    """Threads of a trial; trials that state them run side by side where there are cores enough."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype}: training runs in float32 or bfloat16")
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay={self.weight_decay:g} with adam would be a penalty; use adamw, or leave it 0"
            )
        if self.final_lr is not None and self.schedule != "cosine":
            raise ValueError(f"final_lr={self.final_lr:g} belongs to schedule: cosine; add that, or leave it out")
        if (self.seq_len is None) == (self.lengths is None):
            raise ValueError("give either seq_len or lengths")
        if self.tokens and "batch" in self.model_fields_set:
            raise ValueError("batch and tokens exclude each other; keep one")
        self._check_lengths()
        return self

    @property
    def train_lengths(self) -> list[int]:
        return self.lengths or [self.seq_len]  # type: ignore[list-item]

    def batch_at(self, seq_len: int) -> int:
        """How many sequences of this length a step has."""
        return self.tokens // seq_len if self.tokens else self.batch

    def stages_at(self, seq_len: int) -> list[list[int]]:
        """Length and steps of each stage of the warm-up before this length."""
        return [[stage, self.length_warmup_steps or 0] for stage in self.length_warmup or () if stage < seq_len]

    def _check_lengths(self) -> None:
        if (self.length_warmup is None) != (self.length_warmup_steps is None):
            raise ValueError("length_warmup and length_warmup_steps go together; give both or neither")
        if sorted({*(self.length_warmup or ())}) != (self.length_warmup or []):
            raise ValueError(f"length_warmup={self.length_warmup} must rise; order the lengths")
        for seq_len in self.train_lengths:
            if self.tokens and self.tokens % seq_len:
                raise ValueError(f"tokens={self.tokens} is no multiple of the length {seq_len}; change one")
            stages = self.stages_at(seq_len)
            for stage, _ in stages:
                if self.batch_at(seq_len) * seq_len % stage:
                    raise ValueError(
                        f"a step of {self.batch_at(seq_len) * seq_len} tokens does not split into sequences of {stage} "
                        "(length_warmup); change one"
                    )
            if sum(steps for _, steps in stages) >= self.steps:
                raise ValueError(
                    f"length_warmup takes all of steps={self.steps} before the length {seq_len} itself; "
                    "raise steps or lower length_warmup_steps"
                )


Entry = SpeedEntry | GenerationEntry | AudioGenerationEntry | TrainingEntry
ENTRIES: dict[str, type[SpeedEntry | GenerationEntry | AudioGenerationEntry | TrainingEntry]] = {
    "speed": SpeedEntry,
    "generation": GenerationEntry,
    "audio_generation": AudioGenerationEntry,
    "training": TrainingEntry,
}
