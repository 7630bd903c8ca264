"""Conan 2 recipe of pagedkv, built from the tree that it lies in: conan create packaging/conan (see debian-12.profile too)"""

import os
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir
from conan.tools.gnu import PkgConfigDeps

required_conan_version = ">=2.31"  # for ignored_requires


class Pagedkv(ConanFile):
    """The library alone: headers and one static or shared library."""

    name = "pagedkv"
    description = "Paged KV cache and paged attention for CPUs"
    license = "Apache-2.0"
    topics = ("llm", "inference", "attention", "kv-cache")
    package_type = "library"
    settings = "os", "compiler", "build_type", "arch"
    options = {"shared": [True, False]}
    default_options = {"shared": False}

    def set_version(self):
        header = load(self, os.path.join(self.recipe_folder, "../../include/pagedkv/version.h"))
        self.version = ".".join(re.findall(r"PAGEDKV_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header))

    def export_sources(self):
        root = os.path.join(self.recipe_folder, "../..")
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*"):
            copy(self, pattern, root, self.export_sources_folder)

    def requirements(self):
        self.requires("onetbb/[>=2021.8 <2022]")
        self.requires("highway/[>=1.0.3 <2]")
        self.requires("boost/[>=1.74]", headers=True, libs=False)
        self.requires("xxhash/[>=0.8.1]", headers=True, libs=False)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "TOOLS", "BENCH", "EXAMPLES", "SHARED"):
            toolchain.cache_variables[f"PAGEDKV_BUILD_{part}"] = False
        toolchain.generate()
        deps = CMakeDeps(self)
        deps.set_property("highway", "cmake_file_name", "hwy")
        deps.set_property("highway::hwy", "cmake_target_name", "hwy::hwy")
        deps.generate()
        PkgConfigDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        CMake(self).install()
        for folder in ("lib/cmake", "lib/pkgconfig", "share"):  # Conan generates its own
            rmdir(self, os.path.join(self.package_folder, folder))

    def package_info(self):
        self.cpp_info.libs = ["pagedkv"]
        self.cpp_info.set_property("cmake_file_name", "pagedkv")
        self.cpp_info.set_property("cmake_target_name", "pagedkv::pagedkv")
        if self.settings.os == "Linux":
            self.cpp_info.system_libs = ["m", "pthread"]
        self.cpp_info.ignored_requires = ["boost", "xxhash"]  # headers that stay inside
        packages = {each.ref.name for each in self.dependencies.values() if each.package_folder}
        for dependency, library in (("onetbb", "tbb"), ("highway", "hwy")):
            if dependency in packages:
                self.cpp_info.requires.append(f"{dependency}::{dependency}")
            elif not self.options.shared:  # the system's own, as debian-12.profile says
                self.cpp_info.system_libs.append(library)
