"""The repository's C++ files, for the style checks."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUFFIXES = {".cpp", ".hpp", ".cu", ".cuh"}


def source_files():
    """Tracked files, and new ones that git does not ignore; without git, all but build trees."""
    git = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others",
         "--exclude-standard"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    if git.returncode == 0:
        paths = [ROOT / name for name in git.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if "build" not in path.relative_to(ROOT).parts]
    return sorted({path for path in paths if path.suffix in SUFFIXES and path.is_file()})
