"""Build of the native libraries: hands CMakeLists.txt the torch that is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """One extension stands for the whole CMake build."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, extension: Extension) -> None:
        try:
            import torch
            from torch.utils.cpp_extension import include_paths
        except ImportError:
            sys.exit(
                "reasonrec_fast: building needs torch; install it first (pip install 'torch>=2.11'), "
                "then install with --no-build-isolation"
            )
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None or not shutil.which(compiler):
            sys.exit("reasonrec_fast: building needs a C++17 compiler; install g++ or clang++, or set CXX to one")
        output = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S", str(ROOT),
            "-B", str(build),
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DTORCH_INCLUDE_DIRS={';'.join(include_paths())}",
            f"-DTORCH_LIBRARY_DIR={Path(torch.__file__).parent / 'lib'}",
            f"-DOUTPUT_DIR={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]  # fmt: skip
        if shutil.which("ninja"):
            configure.append("-GNinja")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)

    def copy_extensions_to_source(self) -> None:
        """Every library, of which setuptools knows one; as new files: running programs keep those that they loaded."""
        for library in Path(self.build_lib, "reasonrec_fast").glob("_*.so"):
            target = ROOT / "reasonrec_fast" / library.name
            new = target.with_name(f"{target.name}.new")
            shutil.copy2(library, new)
            new.replace(target)


setup(ext_modules=[Extension("reasonrec_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
