"""The same computation as other processors would do it: other kernels, instructions and threads."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def settings() -> list[dict[str, str]]:
    """Kernels of OpenBLAS for other processors, as far as this one has their instructions; numpy
    without its newer instructions; other numbers of threads.
    """
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    needs = {"Prescott": "ssse3", "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512bw"}
    names = [name for name, flag in needs.items() if flag in flags]
    old = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F"}
    return [
        *({"OPENBLAS_CORETYPE": name, "OPENBLAS_NUM_THREADS": "1"} for name in names),
        {"OPENBLAS_NUM_THREADS": "3"},
        old | {"OPENBLAS_NUM_THREADS": "2"},
    ]


def printed(call: str) -> set[str]:
    """Return what `module:function` gives as text, over all settings."""
    module, _, function = call.partition(":")
    script = f"from {module} import {function}; print({function}())"
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": setting["OPENBLAS_NUM_THREADS"]} | setting,
            stdout=subprocess.PIPE,
            text=True,
        )
        for setting in settings()
    ]
    return {process.communicate()[0].strip() for process in running}
