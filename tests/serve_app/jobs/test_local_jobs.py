"""The jobs in memory are bounded in time, number and bytes, and what is unfinished stays."""

from serve_app.config.sections import JobsConfig
from serve_app.jobs.job import Job
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.pictures import pictures_of


def job(name: str, finished: float | None = None, size: int = 0) -> Job:
    made = Job(name, "", created=float(ord(name)), entries=1, params={})
    if size:
        made.add(0, {"status": 200}, (b"x" * size,))
    if finished is not None:
        made.end(finished)
    return made


def memory_of(*jobs: Job, keep_s: int = 100, kept: int = 10, max_bytes: int = 100) -> LocalJobs:
    memory = LocalJobs(JobsConfig.model_construct(keep_s=keep_s, kept=kept, max_bytes=max_bytes))
    for each in jobs:
        memory.add(each)
    return memory


def names(memory: LocalJobs) -> list[str]:
    return [job.id for job in memory]


def test_finished_jobs_leave_after_their_time_and_others_never() -> None:
    memory = memory_of(job("a", finished=10), job("b", finished=20), job("c"))
    memory.expire(110)
    assert names(memory) == ["a", "b", "c"]
    memory.expire(111)
    assert names(memory) == ["b", "c"]


def test_the_oldest_of_too_many_leave() -> None:
    memory = memory_of(job("a", finished=30), job("b", finished=10), job("c", finished=20), job("d"), kept=2)
    memory.expire(40)
    assert names(memory) == ["a", "c", "d"]


def test_room_is_made_by_letting_the_oldest_finished_go() -> None:
    memory = memory_of(job("a", 30, size=40), job("b", 10, size=30), job("c", size=20))
    assert memory.has_room(10)
    assert names(memory) == ["a", "b", "c"]
    assert memory.has_room(11)
    assert names(memory) == ["a", "c"]
    assert memory.has_room(80)
    assert names(memory) == ["c"]
    assert not memory.has_room(81)
    assert names(memory) == ["c"]


def test_pictures_that_jobs_start_from_take_no_room_from_results() -> None:
    waiting = job("a")
    waiting.pictures = pictures_of({0: b"x" * 90})
    memory = memory_of(waiting, job("b", finished=10, size=40))
    assert memory.has_room(60)
    assert names(memory) == ["a", "b"]
    assert [each.picture_bytes for each in memory.queue] == [90]


def test_results_that_are_saved_elsewhere_leave_first() -> None:
    kept, finished = job("a", size=60), job("b", finished=10, size=40)
    kept.durable = True
    kept.unsaved.clear()
    memory = memory_of(kept, finished)
    assert memory.has_room(60)
    assert names(memory) == ["a", "b"]
    assert (kept.size, kept.succeeded) == (0, 1)
