# Takes the dependencies from Debian 12 instead of a Conan server:
#   conan create packaging/conan --profile:all packaging/conan/debian-12.profile --no-remote
[settings]
os=Linux
arch=x86_64
compiler=gcc
compiler.version=12
compiler.libcxx=libstdc++11
compiler.cppstd=20
build_type=Release

[conf]
tools.cmake.cmaketoolchain:generator=Ninja

[platform_requires]
onetbb/2021.8.0
highway/1.0.3
boost/1.74.0
xxhash/0.8.1
