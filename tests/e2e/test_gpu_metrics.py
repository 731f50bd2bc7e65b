"""GPU metrics of a server, by an NVML binding of the tests' own; and of one whose binding finds no driver."""

import pytest
from e2e.onnx_models import write_slow_repository
from e2e.server_process import Server, plain_environment

WITH_A_GPU = """
import threading
from types import SimpleNamespace as S
def nvmlInit():
    assert threading.current_thread() is not threading.main_thread(), "that is the event loop's"
nvmlDeviceGetCount = lambda: 1
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetUUID = lambda gpu: "GPU-1"
nvmlDeviceGetUtilizationRates = lambda gpu: S(gpu=50)
nvmlDeviceGetMemoryInfo = lambda gpu: S(total=64, used=32)
nvmlDeviceGetPowerUsage = lambda gpu: 1500
nvmlDeviceGetEnforcedPowerLimit = lambda gpu: 2500
nvmlDeviceGetTotalEnergyConsumption = lambda gpu: 1000
"""
WITHOUT_A_DRIVER = """
def nvmlInit():
    raise RuntimeError("NVML Shared Library Not Found")
"""


@pytest.fixture
def server_with(tmp_path):
    """Starts a server whose `pynvml` has this source."""
    write_slow_repository(tmp_path / "models")

    def start(source):
        (tmp_path / "bindings").mkdir()
        (tmp_path / "bindings" / "pynvml.py").write_text(source)
        environment = plain_environment()
        environment["PYTHONPATH"] = f"{tmp_path / 'bindings'}:{environment['PYTHONPATH']}"
        return Server(tmp_path / "models", environment=environment)

    return start


def gpu_lines(server):
    return {line for line in server.get("/metrics")[1].splitlines() if line.startswith("nv_") and "gpu_uuid" in line}


def test_they_are_shown(server_with):
    with server_with(WITH_A_GPU) as server:
        assert gpu_lines(server) == {
            'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5',
            'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 64.0',
            'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 32.0',
            'nv_gpu_power_usage{gpu_uuid="GPU-1"} 1.5',
            'nv_gpu_power_limit{gpu_uuid="GPU-1"} 2.5',
            'nv_energy_consumption{gpu_uuid="GPU-1"} 0.0',
        }
        assert server.stop() == 0


def test_without_a_driver_there_are_none_and_the_log_is_silent(server_with):
    with server_with(WITHOUT_A_DRIVER) as server:
        assert not gpu_lines(server)
        assert "nvml" not in server.log_since_ready.lower()
        assert server.stop() == 0
