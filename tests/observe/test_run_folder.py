"""One folder, one run, one process; what was settled stays settled."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openk2.observe.lock import RunLock
from openk2.observe.memory import give_back_memory, peak_rss_bytes, wall_since_process_start
from openk2.observe.run_folder import RunFolder, config_digest

CONFIG = {"model": {"hidden_size": 256, "sizes": (1, 2)}, "optim": {"name": "muonclip", "lr": 3e-3}}


def open_folder(path: Path, config: dict[str, Any] = CONFIG, **values: Any) -> RunFolder:
    given: dict[str, Any] = {
        "stage": "pretrain", "command": ["openk2", "pretrain", "tiny"], "seed": 0, "threads": 2,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }  # fmt: skip
    return RunFolder.open(path, config, **{**given, **values})


def test_a_first_start_writes_what_runs(tmp_path: Path) -> None:
    with open_folder(tmp_path / "run") as folder:
        assert not folder.resumed and folder.warnings == ()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["model"] == {"hidden_size": 256, "sizes": [1, 2]}
    assert record["config_digest"] == config_digest(CONFIG) and len(record["config_digest"]) == 64
    assert record["command"] == ["openk2", "pretrain", "tiny"] and record["threads"] == 2
    assert record["seed"] == 0 and record["versions"]["torch"] == "2.13.0" and "commit" in record


def test_the_same_config_resumes_and_keeps_what_was_settled(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        assert folder.resolve("dtype", lambda: "bf16") == "bf16"
    with open_folder(tmp_path) as folder:
        assert folder.resumed and folder.warnings == ()
        assert folder.resolve("dtype", lambda: pytest.fail("decided twice")) == "bf16"
        assert folder.resolved == {"dtype": "bf16"}


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("optim", "lr", 1e-3, "saw optim.lr = 0.001, expected 0.003"),
        ("optim", "extra", True, "saw optim.extra = true, expected nothing"),
        ("model", "hidden_size", 256.0, "saw model.hidden_size = 256.0, expected 256"),
        ("model", "sizes", tuple(range(100)), r"saw model.sizes = \[0, 1, .*\.\.\., expected \[1, 2\]"),
    ],
)
def test_another_config_is_refused_by_its_first_differing_key(
    tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "metrics.jsonl").touch()
    before = (tmp_path / "run.json").read_bytes()
    other: dict[str, Any] = {**CONFIG, section: {**CONFIG[section], key: value}}
    with pytest.raises(ValueError, match=message) as caught:
        open_folder(tmp_path, other)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before
    open_folder(tmp_path).close()  # and the refusal left the folder free


def test_where_nothing_was_made_another_run_may_begin(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        folder.resolve("dtype", lambda: "bf16")
    other = {**CONFIG, "optim": {"name": "muonclip", "lr": 1e-3}}
    with open_folder(tmp_path, other) as folder:
        assert not folder.resumed and folder.resolve("dtype", lambda: "fp32") == "fp32"
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="saw optim.lr"):
        open_folder(tmp_path)


def test_another_stage_or_seed_is_refused(tmp_path: Path) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match='saw stage = "sft", expected "pretrain"'):
        open_folder(tmp_path, stage="sft")
    with pytest.raises(ValueError, match="saw seed = 1, expected 0"):
        open_folder(tmp_path, seed=1)


def test_a_free_section_may_change_and_the_rest_may_not(tmp_path: Path) -> None:
    spread = CONFIG | {"parallel": {"dp": 1}}
    open_folder(tmp_path, spread).close()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with open_folder(tmp_path, CONFIG | {"parallel": {"dp": 2}}, free=("parallel",)) as folder:
        assert folder.resumed and folder.record["config"]["parallel"] == {"dp": 1}  # as the run began
    with pytest.raises(ValueError, match=r"parallel\.dp"):
        open_folder(tmp_path, CONFIG | {"parallel": {"dp": 2}})


def test_changed_threads_and_versions_are_said(tmp_path: Path) -> None:
    open_folder(tmp_path).close()
    with open_folder(tmp_path, threads=4, versions={"python": "3.11.7", "torch": "2.14.0"}) as folder:
        assert [line.partition(";")[0] for line in folder.warnings] == [
            "threads: the run began with 2, this start has 4",
            "torch: the run began with 2.13.0, this start has 2.14.0",
        ]
        assert folder.record["threads"] == 2 and folder.record["resumes"][0]["threads"] == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "pretrain"}'])
def test_a_broken_run_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="expected a run record") as caught:
        open_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="saw a file"):
        open_folder(tmp_path / "run")


def test_a_second_user_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with open_folder(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        open_folder(tmp_path)
    open_folder(tmp_path).close()


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    script = "import sys; from openk2.observe.lock import RunLock; l = RunLock(sys.argv[1]); print('held'); input()"
    holder = subprocess.Popen(
        [sys.executable, "-uc", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"in use by process {holder.pid}"):
        RunLock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunLock(tmp_path):
        pass


def test_peak_memory_counts_this_process_and_its_children() -> None:
    before = peak_rss_bytes()
    assert 5e6 < before < 1e11
    ballast = f"x = b'1' * {before + 100_000_000}"
    subprocess.run([sys.executable, "-c", ballast], check=True)
    assert peak_rss_bytes() >= before + 100_000_000


def test_wall_time_runs_from_the_start_of_the_process() -> None:
    script = (
        "import time; time.sleep(0.3)\n"
        "from openk2.observe.memory import wall_since_process_start\n"
        "print(wall_since_process_start())"
    )
    seconds = float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert 0.29 < seconds < 60
    assert wall_since_process_start() > 0


def test_what_nothing_can_reach_is_given_back() -> None:
    """Small buffers held by a cycle: afterwards the process is smaller by most of their size."""

    class Holder:
        pass

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    holder = Holder()
    holder.itself = holder  # type: ignore[attr-defined]
    holder.buffers = [bytearray(os.urandom(1 << 14)) for _ in range(6_000)]  # type: ignore[attr-defined]
    full = resident()
    del holder
    give_back_memory()
    assert resident() < full - 60_000_000


def test_large_buffers_are_used_again_without_fresh_pages() -> None:
    """By the page faults of allocating 50 MB a second time, in a process of its own: the setting stays."""
    script = (
        "import resource, sys\n"
        "from openk2.observe.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(2):\n"
        "    before = faults(); bytearray(b'x') * 50_000_000; made = faults() - before\n"
        "print(made)"
    )
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")

    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True).stdout)

    assert faults("plain") > 10_000  # 12,207 pages of 4 KiB
    assert faults("keep") < 1_000
