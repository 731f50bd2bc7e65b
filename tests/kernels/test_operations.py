"""Operations on the host, and what they refuse before anything is launched."""

import numpy as np
import pytest

from headrace_kernels.check import cases
from headrace_kernels.host import HostKernels
from headrace_kernels.images import ImageTransform
from headrace_kernels.operations import (
    Dequantize,
    GatherRows,
    Quantize,
    ScatterRows,
    SelectTop,
    TransformImages,
    UpdateStatistics,
)


@pytest.mark.parametrize("case", cases.small(), ids=lambda case: type(case.operation).__name__)
def test_runs_on_the_host_as_the_reference_does(case):
    memory = {
        each.name: case.given[each.name].copy() if each.name in case.given else np.zeros(each.shape, each.dtype)
        for each in case.operation.arrays()
        if each.role != "scratch"
    }
    HostKernels().bind(case.operation, memory)()
    for name, expected in case.expected().items():
        if name in memory:
            np.testing.assert_array_equal(memory[name], expected)


def test_the_host_refuses_memory_that_does_not_fit():
    operation = SelectTop(2, 5, 1)
    memory = {
        "logits": np.zeros((2, 5), np.float32),
        "values": np.zeros((2, 1), np.float32),
        "indices": np.zeros((2, 1), np.int32),
    }
    HostKernels().bind(operation, memory)
    with pytest.raises(ValueError, match="SelectTop needs an array 'indices'"):
        HostKernels().bind(operation, {name: memory[name] for name in ("logits", "values")})
    for wrong in (np.zeros((2, 5), np.float16), np.zeros((5, 2), np.float32), np.zeros((5, 2), np.float32).T):
        with pytest.raises(ValueError, match=r"float32 \[2, 5\], contiguous, was expected"):
            HostKernels().bind(operation, {**memory, "logits": wrong})


@pytest.mark.parametrize(
    "operation",
    [
        TransformImages(ImageTransform(2, 2), 0, 0),
        GatherRows(0, 0, 5, "float32"),
        ScatterRows(3, 7, 0, "float32"),
        Quantize((0, 3), 1),
        Dequantize((2, 0)),
        SelectTop(0, 5, 1),
        UpdateStatistics(0, 3, 4),
        UpdateStatistics(3, 0, 4),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_nothing_is_launched_for_nothing(operation):
    assert operation.launches() == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformImages(ImageTransform(2, 2), 65536, 0), "0 to 65535 images, not 65536"),
        (lambda: GatherRows(-1, 0, 5, "float32"), r"rows is 0 to 2\*\*30, not -1"),
        (lambda: GatherRows(1, 0, 1 << 20, "float32", (1 << 11,)), r"a row of 1048576 items \[2048\] is 0 to"),
        (lambda: GatherRows(1, 1, 1, "complex128"), "1, 2, 4 or 8 bytes, not 16"),
        (lambda: GatherRows(1, 1, 1, "int8", lengths_dtype="float32"), "lengths are integers, not float32"),
        (lambda: GatherRows(1, 1, 1, "int8", mask_dtype="complex128"), "a mask has elements of 1, 2, 4 or 8 bytes"),
        (lambda: ScatterRows(1, 1 << 31, 1, "int8"), r"items is 0 to 2\*\*30"),
        (lambda: Quantize((3,), 1), r"axis 1 is none of a tensor \[3\]"),
        (lambda: Quantize((1 << 16, 1 << 15)), r"elements is 0 to 2\*\*30"),
        (lambda: Dequantize((3,), real="float64"), "not float64 and int8"),
        (lambda: SelectTop(1, 3, 4), "k is 1 to 3, the number of classes, not 4"),
        (lambda: SelectTop(1, 3, 1, dtype="float64"), "logits are float32 or float16, not float64"),
        (lambda: UpdateStatistics(1, 1, 257), "1 to 256 bins, not 257"),
        (lambda: UpdateStatistics(1, 1, 1, "int8"), "features are float32 or float16, not int8"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_moves_rows_in_the_largest_units_that_items_allow():
    kernels = {
        ("uint8", (3,)): "gather_1",
        ("float16", ()): "gather_2",
        ("float32", (3,)): "gather_4",
        ("int64", ()): "gather_8",
        ("float32", (768,)): "gather_16",
    }
    for (dtype, item), kernel in kernels.items():
        operation = GatherRows(4, 9, 5, dtype, item)
        assert operation.launches()[0].kernel == kernel
        unit = int(kernel.rpartition("_")[2])
        assert {array.name: array.align for array in operation.arrays() if array.name in ("values", "out")} == {
            "values": unit,
            "out": unit,
        }


def test_counts_the_bytes_that_must_be_moved():
    assert SelectTop(10, 100, 2).bytes_moved() == 10 * 100 * 4 + 10 * 2 * 8
    assert Quantize((10, 20), 1).bytes_moved() == 200 * 5 + 20 * 4
    assert GatherRows(2, 5, 4, "int64", (), 0, "bool", "int32").bytes_moved() == 5 * 8 + 3 * 8 + 8 * 8 + 8 + 2 * 4
    assert ScatterRows(2, 5, 4, "int64").bytes_moved() == 2 * 5 * 8 + 3 * 8


def test_statistics_have_enough_blocks_and_no_more():
    grids = {
        rows: UpdateStatistics(rows, 64, 10).launches()[0].grid
        for rows in (1, 256, 257, 1 << 17, (1 << 17) + 1, 1 << 20)
    }
    assert [grid[1] for grid in grids.values()] == [1, 1, 2, 132, 132, 132]
    assert {grid[0] for grid in grids.values()} == {2}
