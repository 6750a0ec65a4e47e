"""Zero-shot items: every published form gives lm-eval's own requests, and a malformed line says where it is."""

import json
import lzma
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation.catalogue import GROUPS, PAPER_METRICS, ZERO_SHOT
from benchmarks.evaluation.formats import FORMS, to_document
from benchmarks.evaluation.lines import Line
from benchmarks.evaluation.lm_harness import TASK_FILES, ConfigurableTask, datasets, load_yaml
from benchmarks.evaluation.local_tasks import LocalTask, load_tasks
from tasks import Provenance, TaskError

ABC = {"text": ["an egg", "a rope  ladder", "sand."], "label": ["A", "B", "C"]}
NUMBERED = {"text": ["an egg", "a rope  ladder", "sand.", "Tea"], "label": ["1", "2", "3", "4"]}
# Rows as the hub's data sets hold them; lm-eval's own tasks are written for these.
HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [{"text": "He rang the  bell,\n\nand it rang; he rang the bell"}, {"text": "“No,” said Größe"}],
    "hellaswag": [
        {"activity_label": "Roof shingle removal", "ctx_a": "A man is on a roof.", "ctx_b": "he", "label": "3",
         "endings": ["is using wrap.", "is [substeps] ripping level tiles off.", "holds  a cube.", "starts."]},
        {"activity_label": "Home", "ctx_a": "How to bake [title] Mix [step] Stir.", "ctx_b": "", "label": "0",
         "endings": ["Wait. [step] Eat.", "Run.", "Sit.", "Go."]},
    ],
    "piqa": [{"goal": "dresser", "sol1": "a drawer ", "sol2": "finish, woodgrain with  pins ", "label": 1}],
    "arc_easy": [
        {"question": "Which is eaten?", "choices": ABC, "answerKey": "A"},
        {"question": "Which  is drunk", "choices": NUMBERED, "answerKey": "4"},
    ],
    "arc_challenge": [{"question": "Which is climbed?", "choices": NUMBERED, "answerKey": "2"}],
    "winogrande": [
        {"sentence": "Sarah was better than Maria so _ always got the easier cases.", "option1": "Sarah",
         "option2": "Maria", "answer": "2"},
        {"sentence": "The bag held the ball, but _'s seam broke.", "option1": "the bag", "option2": "the ball",
         "answer": "1"},
    ],
    "openbookqa": [{"question_stem": "Predators eat", "choices": ABC, "answerKey": "C"}],
    "boolq": [
        {"passage": "Barq's is a soft drink. -- It has\ncaffeine.", "question": "is barq's a soft drink", "label": 1},
        {"passage": "Zero is even.", "question": "is zero odd", "label": 0},
    ],
    "copa": [
        {"premise": "The man fainted.", "question": "cause", "choice1": "He took a nap.", "choice2": "He ran.",
         "label": 1},
        {"premise": "I coughed. ", "question": "effect", "choice1": "My throat hurt.", "choice2": "It rained.",
         "label": 0},
    ],
    "siqa": [
        {"context": "Tracy didn't go home.", "question": "Why did Tracy do this?", "answerA": "to rest",
         "answerB": "to make a plan", "answerC": "to find a hotel", "label": "3"},
    ],
}  # fmt: skip


def requests_of(built: ConfigurableTask) -> list[tuple[int, tuple[str, str]]]:
    built.build_all_requests()
    return [(instance.doc_id, instance.args) for instance in built.instances]


def own_task(task: str, rows: list[dict[str, Any]]) -> ConfigurableTask:
    """lm-eval's own task as it describes it, but for where its rows come from."""
    dataset = datasets.Dataset.from_list(rows)
    config = load_yaml(TASK_FILES / ZERO_SHOT[task].yaml)
    config.pop("tag", None)
    config["custom_dataset"] = lambda **_: {"train": dataset, "validation": dataset, "test": dataset}
    return ConfigurableTask(config=config)


def ours(task: str, items: list[dict[str, Any]]) -> ConfigurableTask:
    documents = tuple(to_document(task, Line(place="here", fields=json.loads(json.dumps(item)))) for item in items)
    return LocalTask(name=task, documents=documents, provenance=Provenance(name="x", kind="user")).build()


@pytest.mark.parametrize("task", ZERO_SHOT)
def test_hub_rows_give_the_requests_answers_and_metrics_of_the_harness_own_task(task):
    rows = HUB_ROWS[task]
    theirs, mine = own_task(task, rows), ours(task, rows)
    expected = requests_of(theirs)
    assert requests_of(mine) == expected and len(expected) >= len(rows)
    for place, (row_mine, row_theirs) in enumerate(zip(mine.eval_docs, theirs.eval_docs, strict=True)):
        count = len([doc_id for doc_id, _ in expected if doc_id == place])
        for best in range(count):
            results = [(-1.0 if i == best else -9.0, False) for i in range(count)]
            assert mine.process_results(row_mine, results) == theirs.process_results(row_theirs, results)
    assert set(mine.aggregation()) == set(theirs.aggregation())


def test_the_group_is_the_papers_set_and_its_metrics_are_the_tasks(monkeypatch):
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)
    tasks = load_tasks(["mamba_paper"])
    assert [task.name for task in tasks] == list(GROUPS["mamba_paper"]) == list(PAPER_METRICS)
    theirs = {"accuracy": "acc", "acc_norm": "acc_norm", "perplexity": "perplexity"}
    for task in tasks:
        known = set(task.build().aggregation())
        assert {theirs[metric] for metric in PAPER_METRICS[task.name]} <= known
    again = [task.name for task in load_tasks(["piqa", "mamba_paper", "piqa"])]
    assert again[0] == "piqa" and sorted(again) == sorted(GROUPS["mamba_paper"])


# Other published forms of the same items: (task, line, the hub's row that it stands for).
AI2 = {"stem": "Which is climbed?", "choices": [{"text": "an egg", "label": "A"}, {"text": "a rope", "label": "B"}]}
OTHER_FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("arc_challenge", {"question": AI2, "answerKey": "B"},
     {"question": "Which is climbed?", "choices": {"text": ["an egg", "a rope"], "label": ["A", "B"]},
      "answerKey": "B"}),
    ("arc_challenge", {"query": "Question: Which is climbed?\n", "choices": NUMBERED["text"], "gold": 1},
     HUB_ROWS["arc_challenge"][0]),
    ("openbookqa", {"query": "Predators eat", "choices": ABC["text"], "gold": 2}, HUB_ROWS["openbookqa"][0]),
    ("openbookqa", {"question": {"stem": "Predators eat", "choices": AI2["choices"]}, "answerKey": "A"},
     {"question_stem": "Predators eat", "choices": {"text": ["an egg", "a rope"], "label": ["A", "B"]},
      "answerKey": "A"}),
    ("winogrande",
     {"context_options": ["Sarah was better than Maria so Sarah", "Sarah was better than Maria so Maria"],
      "continuation": "always got the easier cases.", "gold": 1},
     HUB_ROWS["winogrande"][0]),
    ("winogrande", {"query": HUB_ROWS["winogrande"][0]["sentence"], "choices": ["Sarah", "Maria"], "gold": 1},
     HUB_ROWS["winogrande"][0]),
    ("boolq",
     {"query": "Passage: Barq's is a soft drink. -- It has\ncaffeine.\nQuestion: is barq's a soft drink?",
      "choices": ["no", "yes"], "gold": 1}, HUB_ROWS["boolq"][0]),
    ("boolq", {"query": "Passage: Zero is even.\nQuestion: is zero odd?\n", "choices": ["yes", "no"], "gold": 1},
     HUB_ROWS["boolq"][1]),
    ("boolq", {"passage": "Zero is even.", "question": "is zero odd", "title": "Zero", "answer": False},
     HUB_ROWS["boolq"][1]),
    ("copa", {"query": "The man fainted, because", "choices": ["he took a nap.", "he ran."], "gold": 1},
     HUB_ROWS["copa"][0]),
    ("copa", {"query": "I coughed, therefore", "choices": ["my throat hurt.", "it rained."], "gold": 0},
     HUB_ROWS["copa"][1]),
    ("siqa",
     {"query": "Context: Tracy didn't go home.\nQuestion: Why did Tracy do this?",
      "choices": ["to rest", "to make a plan", "to find a hotel"], "gold": 2}, HUB_ROWS["siqa"][0]),
    ("siqa",
     {"query": "Context: Tracy didn't go home.\nQuestion: Why did Tracy do this?\nChoices:\nA. to rest\n"
               "B. to make a plan\nC. to find a hotel\nAnswer:", "choices": ["A", "B", "C"], "gold": 2},
     HUB_ROWS["siqa"][0]),
    ("siqa", {"query": "Tracy didn't go home. Why did Tracy do this?",
              "choices": ["to rest", "to make a plan", "to find a hotel"], "gold": 2}, HUB_ROWS["siqa"][0]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "line", "row"), OTHER_FORMS)
def test_other_published_forms_give_the_same_requests_and_the_same_answer(task, line, row):
    theirs, mine = own_task(task, [row]), ours(task, [line])
    expected = requests_of(theirs)
    assert requests_of(mine) == expected
    for best in range(len(expected)):
        results = [(-1.0 if i == best else -50.0, False) for i in range(len(expected))]
        docs = next(iter(mine.eval_docs)), next(iter(theirs.eval_docs))
        assert mine.process_results(docs[0], results)["acc"] == theirs.process_results(docs[1], results)["acc"]


def test_every_form_is_tested():
    tested = {task: {frozenset(row) for row in rows} for task, rows in HUB_ROWS.items()}
    for task, line, _ in OTHER_FORMS:
        tested[task].add(frozenset(line))
    elsewhere = {("lambada_openai", 0), ("hellaswag", 1), ("piqa", 1), ("arc_easy", 0), ("arc_easy", 2)}
    for task, forms in FORMS.items():
        for place, form in enumerate(forms):
            first = [next(i for i, f in enumerate(forms) if set(f.keys) <= keys) for keys in tested[task]]
            assert place in first or (task, place) in elsewhere, (task, form.keys)


def test_two_of_three_answers_are_two_requests():
    line = {"query": "Context: A man fell.\nQuestion: Why?\nChoices:\nA. ice\nB. tea\nAnswer:", "choices": ["A", "B"],
            "gold": 1}  # fmt: skip
    assert [args for _, args in requests_of(ours("siqa", [line]))] == [
        ("Q: A man fell. Why?\nA:", " ice"), ("Q: A man fell. Why?\nA:", " tea")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("boolq", {"query": "Passage: x\nQuestion: y?", "choices": ["maybe", "yes"], "gold": 0}, "not 'no' and 'yes'"),
        ("boolq", {"query": "only a question?", "choices": ["no", "yes"], "gold": 0}, "Passage: …"),
        ("boolq", {"passage": "x", "question": "y", "label": 2}, r"'label' is 2.*0\.\.1"),
        ("boolq", {"passage": "x", "question": "y", "answer": "true"}, "'answer' is 'true'"),
        ("copa", {"query": "The man fainted.", "choices": ["a.", "b."], "gold": 0}, "because' or ' therefore"),
        ("copa", {"query": "It is, because", "choices": ["a.", "b.", "c."], "gold": 0}, "3 entries where copa has 2"),
        ("copa", {"premise": "x.", "question": "why", "choice1": "a", "choice2": "b", "label": 0}, "cause' or 'effect"),
        ("siqa", {"context": "x", "question": "y", "answerA": "a", "answerB": "b", "answerC": "c", "label": "0"},
         r"'label' is '0'.*1\.\.3"),
        ("siqa", {"query": "Context: x\nQuestion: y\nChoices:\nA. ice\nAnswer:", "choices": ["A", "B"], "gold": 0},
         "not the letters"),
        ("siqa", {"context": "x", "question": "y", "answerA": "a", "answerB": "b", "answerC": "c"}, r"labels\.lst"),
        ("openbookqa", {"question": {"stem": "x"}, "answerKey": "A"}, "stem, choices"),
        ("arc_challenge", {"question": AI2, "answerKey": "D"}, "'answerKey' 'D'"),
        ("arc_challenge", {"query": "q", "choices": ["a", "b"], "gold": 2}, r"'gold' is 2.*0\.\.1"),
        ("winogrande", {"query": "no gap", "choices": ["a", "b"], "gold": 0}, "no '_'"),
    ],
)  # fmt: skip
def test_a_malformed_line_names_file_and_line(tmp_path, task, line, message):
    path = tmp_path / f"{task}.jsonl"
    good = OTHER_FORMS[[entry[0] for entry in OTHER_FORMS].index(task)][1]
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(line)}\n")
    with pytest.raises(TaskError, match=message) as error:
        load_tasks([task], sources={task: path})
    assert f"{path}, line 3" in str(error.value)


def test_archives_folders_of_splits_and_labels_beside_are_read(tmp_path):
    folder = tmp_path / "root" / "language" / "socialiqa-train-dev"
    folder.mkdir(parents=True)
    unlabelled = {key: value for key, value in HUB_ROWS["siqa"][0].items() if key != "label"}
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text(json.dumps(unlabelled) + "\n")
        (folder / f"{split}-labels.lst").write_text("3\n" if split == "dev" else "1\n")
    arc = tmp_path / "root" / "language" / "ARC-Challenge"
    arc.mkdir()
    for split, key in (("Train", "A"), ("Dev", "A"), ("Test", "B")):
        (arc / f"ARC-Challenge-{split}.jsonl").write_text(json.dumps({"question": AI2, "answerKey": key}) + "\n")
    siqa, challenge = load_tasks(["social_iqa", "arc_challenge"], data_root=tmp_path / "root")
    assert [document["label"] for document in siqa.documents] == ["3"]
    assert [document["answerKey"] for document in challenge.documents] == ["B"]  # lm-eval asks ARC's test split
    archive = tmp_path / "items.tar.xz"
    content = json.dumps({"query": "I coughed, therefore", "choices": ["a.", "b."], "gold": 1}).encode()
    with lzma.open(archive, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as packed:
        entry = tarfile.TarInfo("copa/val.jsonl")
        entry.size = len(content)
        packed.addfile(entry, BytesIO(content))
    (copa,) = load_tasks(["copa"], sources={"copa": archive})
    assert copa.documents[0]["label"] == 1 and copa.provenance.kind == "user" and len(copa.provenance.sha256) == 64


def test_without_data_every_task_has_an_embedded_sample_that_says_so(monkeypatch):
    monkeypatch.delenv("SEQBENCH_DATA", raising=False)
    for task in load_tasks(list(ZERO_SHOT)):
        assert task.provenance.kind == "embedded" and "too few to compare" in task.provenance.note
        assert len(task.documents) == 8
        requests_of(task.build())


def test_the_hub_is_asked_only_where_allowed_and_its_failure_is_said(monkeypatch, tmp_path):
    asked = []

    def refused(path: str, subset: str | None, *, split: str) -> Any:
        asked.append((path, subset, split))
        raise ConnectionError("no route")

    monkeypatch.delenv("SEQBENCH_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refused)
    monkeypatch.delenv("SEQBENCH_DOWNLOAD", raising=False)
    (task,) = load_tasks(["arc_challenge"])
    assert asked == [] and task.provenance.kind == "embedded"
    monkeypatch.setenv("SEQBENCH_DOWNLOAD", "1")
    (task,) = load_tasks(["arc_challenge"])
    assert asked == [("allenai/ai2_arc", "ARC-Challenge", "test")]
    assert task.provenance.kind == "embedded" and "no route" in task.provenance.note
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(OTHER_FORMS[1][1]) + "\n")
    load_tasks(["arc_challenge"], sources={"arc_challenge": path})
    assert len(asked) == 1  # a file in hand needs no network
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(HUB_ROWS["arc_easy"]))
    (task,) = load_tasks(["arc_easy"])
    assert task.provenance.name == "allenai/ai2_arc ARC-Easy test (hub)" and len(task.provenance.sha256) == 64
    assert requests_of(task.build()) == requests_of(own_task("arc_easy", HUB_ROWS["arc_easy"]))


@pytest.mark.parametrize(
    ("typed", "near"),
    [("wingrande", "winogrande"), ("mamba_papr", "mamba_paper"), ("copaa", "copa"), ("arc", "arc_challenge")],
)
def test_an_unknown_task_names_its_near_misses(typed, near):
    with pytest.raises(TaskError, match=f"'{typed}'; did you mean.*{near}"):
        load_tasks([typed])


def test_the_names_of_files_belong_to_no_other_task(tmp_path: Path):
    """A folder with a file of every task gives each task its own."""
    root = tmp_path / "language"
    root.mkdir()
    names = {"openbookqa": "openbook_qa", "siqa": "siqa"}
    for task, rows in HUB_ROWS.items():
        lines = [json.dumps(row) for row in rows]
        (root / f"{names.get(task, task)}.jsonl").write_text("\n".join(lines))
    for task in load_tasks(list(ZERO_SHOT), data_root=tmp_path):
        assert task.provenance.files == (f"language/{names.get(task.name, task.name)}.jsonl",)
