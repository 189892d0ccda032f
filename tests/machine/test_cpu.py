"""fastrnn.machine.cpu: thread counts from affinity, quota and environment; caches."""

import os

import pytest

from fastrnn.errors import FastRNNError
from fastrnn.machine import cpu

pytestmark = pytest.mark.any_isa


@pytest.fixture
def machine(monkeypatch):
    """A machine of 8 CPUs without a quota."""
    monkeypatch.setattr(cpu, "_affinity", lambda: ("CPUs of this process's affinity", 8))
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: None)
    return monkeypatch


def test_affinity_decides_where_nothing_else_does(machine):
    info = cpu.thread_info({})
    assert (info.count, info.reason) == (8, "CPUs of this process's affinity")


@pytest.mark.parametrize(("quota", "count"), [(0.5, 1), (1.0, 1), (2.5, 2), (3.0, 3)])
def test_a_quota_is_rounded_down_but_never_to_nothing(machine, quota, count):
    machine.setattr(cpu, "cgroup_quota", lambda: quota)
    info = cpu.thread_info({})
    assert (info.count, info.reason) == (count, "CPU quota of the control group")


def test_a_quota_above_the_affinity_changes_nothing(machine):
    machine.setattr(cpu, "cgroup_quota", lambda: 64.0)
    assert cpu.thread_info({}).count == 8


@pytest.mark.parametrize(("text", "count"), [("4", 4), ("4,2", 4), (" 3 ", 3), ("", 8), ("16", 8)])
def test_omp_num_threads_is_an_upper_bound(machine, text, count):
    assert cpu.thread_info({"OMP_NUM_THREADS": text}).count == count


def test_fastrnn_threads_overrides_everything(machine):
    machine.setattr(cpu, "cgroup_quota", lambda: 1.0)
    info = cpu.thread_info({"FASTRNN_THREADS": "16", "OMP_NUM_THREADS": "2"})
    assert (info.count, info.reason) == (16, "FASTRNN_THREADS")
    assert dict(info.limits)["OMP_NUM_THREADS"] == 2


@pytest.mark.parametrize("variable", ["FASTRNN_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("text", ["0", "-1", "four", "1.5", "99999", "²"])
def test_a_wrong_number_of_threads_is_an_error(machine, variable, text):
    with pytest.raises(FastRNNError, match=f"{variable}={text}: expected a number of threads from 1 to 1024"):
        cpu.thread_info({variable: text})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_is_this_process_s_own():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu.thread_info({}).count == 1
    finally:
        os.sched_setaffinity(0, before)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_quota_v2_is_the_least_on_the_way_up(tmp_path):
    (tmp_path / "cgroup").write_text("0::/pod/box\n")
    write(tmp_path / "fs/pod/box", cpu__max="max 100000\n")
    write(tmp_path / "fs/pod", cpu__max="150000 100000\n")
    write(tmp_path / "fs", cpu__max="400000 100000\n")
    assert cpu.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs")) == 1.5


def test_quota_v1_is_read_from_the_cpu_controller(tmp_path):
    (tmp_path / "cgroup").write_text("4:memory:/pod\n2:cpu,cpuacct:/pod\n0::/\n")
    write(tmp_path / "fs/cpu,cpuacct/pod", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n")
    assert cpu.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs")) == 2.5


def test_in_a_container_the_root_of_the_mount_counts(tmp_path):
    """The path is the host's and does not exist below the mount."""
    (tmp_path / "cgroup").write_text("1:cpu:/docker/0123\n")
    write(tmp_path / "fs/cpu", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert cpu.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs")) == 1.0


@pytest.mark.parametrize("text", ["max 100000", "", "a b", "100000 0", "1 2 3"])
def test_what_is_no_quota_limits_nothing(tmp_path, text):
    (tmp_path / "cgroup").write_text("0::/../outside\nnonsense\n")
    write(tmp_path / "fs", cpu__max=text)
    assert cpu.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs")) is None


def test_unlimited_v1_and_no_control_groups(tmp_path):
    (tmp_path / "cgroup").write_text("1:cpu:/\n")
    write(tmp_path / "fs/cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cpu.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs")) is None
    assert cpu.cgroup_quota(str(tmp_path / "absent"), str(tmp_path / "fs")) is None


def test_caches_are_read_and_damage_is_skipped(tmp_path):
    write(tmp_path / "index0", level="1", type="Data", size="48K")
    write(tmp_path / "index1", level="1", type="Instruction", size="32K")
    write(tmp_path / "index2", level="2", type="Unified", size="2M")
    write(tmp_path / "index3", level="3", type="Unified", size="?")
    assert cpu._caches(str(tmp_path)) == {"L1d": 48 * 1024, "L2": 2 * 1024 * 1024}
