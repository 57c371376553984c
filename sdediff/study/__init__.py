"""Step count against quality: which solver, at how many network calls, with an interval that can be believed.

    study = read_study("mnist")
    job = Job(study, problem_of(study), Store(Path("runs/mnist")))
    for progress in run(job): ...
    found = write_report("runs/mnist")

`sdediff study` is its face at the command line; docs/study.md says what the numbers mean and what the files hold.
"""

from .analysis import Gathered, Group, against, chosen, consistency, difference, findings_of, front_of, groups_of, ties, verdict
from .cells import CHUNK, Cell, Product, Study, changed, quick, read_study, shipped, study_of
from .estimate import Plan, Planned, plan
from .findings import Findings, Interval, Line, Sheet
from .gather import gathered, merge, open_folder, write_report
from .job import Job, Progress, all_hear, run
from .judge import Judge, column, title
from .problem import Problem, problem_of
from .results import estimates, frame
from .store import Chunk, Record, Store
from .work import Real, Sampling

__all__ = [
    "CHUNK",
    "Cell",
    "Chunk",
    "Findings",
    "Gathered",
    "Group",
    "Interval",
    "Job",
    "Judge",
    "Line",
    "Plan",
    "Planned",
    "Problem",
    "Product",
    "Progress",
    "Real",
    "Record",
    "Sampling",
    "Sheet",
    "Store",
    "Study",
    "against",
    "all_hear",
    "changed",
    "chosen",
    "column",
    "consistency",
    "difference",
    "estimates",
    "findings_of",
    "frame",
    "front_of",
    "gathered",
    "groups_of",
    "merge",
    "open_folder",
    "plan",
    "problem_of",
    "quick",
    "read_study",
    "run",
    "shipped",
    "study_of",
    "ties",
    "title",
    "verdict",
    "write_report",
]
