"""A plan must answer at once: nothing heavy is imported with the schedules."""

import subprocess
import sys


def test_importing_schedule_does_not_import_torch_or_matplotlib() -> None:
    code = (
        "import sys, trainsys.schedule, trainsys.schedule.picture, trainsys.schedule.timeline; "
        "print([name for name in ('torch', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
