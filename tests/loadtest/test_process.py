import os
import subprocess
import sys

from compare.process import clients_busy_seconds, cpu_seconds, descendants, machine_busy_seconds, rss_mib

CHILD = "print('up', flush=True); input()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
child.communicate(b"end")
"""


def test_children_count_and_the_dead_do_not():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert descendants(parent.pid) == [parent.pid, child]
        assert rss_mib(parent.pid) > rss_mib(child) > 1  # MiB
        parent.communicate()
    assert descendants(parent.pid) == []
    assert (cpu_seconds(parent.pid), rss_mib(parent.pid)) == (0, 0)


def test_processor_time_is_the_systems():
    burn = "import os; sum(range(10**7)); t = os.times(); print(t.user + t.system, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        used = float(child.stdout.readline())
        assert abs(cpu_seconds(child.pid) - used) < 0.05
        assert used > 0.05
        child.communicate(b"end")
    mine = os.times()
    assert clients_busy_seconds() >= mine.user + mine.system - 0.1
    assert machine_busy_seconds() > mine.user
