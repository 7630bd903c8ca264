"""The laws of the house, as data: rooms, what each may include, and where foreign headers are at home.

docs/ARCHITECTURE.md explains them; check_layers.py enforces them.
"""

BASE = ("core", "cpu")

# Room -> the rooms that it may include besides itself. A room absent here is an error.
ROOMS = {
    "core": (),
    "cpu": ("core",),
    "memory": BASE,
    "pool": ("memory", *BASE),
    "sequence": ("pool", "memory", *BASE),
    "prefix": ("pool", "memory", *BASE),
    "format": BASE,
    "kernels": ("format", *BASE),
    "attention": ("kernels", "format", *BASE),
    "cache": ("memory", "pool", "sequence", "prefix", "format", "kernels", "attention", *BASE),
    "capi": (),
}

# Public headers belong to a room: the one on their "// Layer:" line, core without one. The rooms listed here are open
# to the public header of a room above them, because it declares the plain data in which the two speak.
PUBLIC_HEADERS = {"kernels": ("attention",), "format": ("attention",), "capi": tuple(ROOMS)}

# Foreign headers (regular expression over the included name) -> the rooms that may include them.
FOREIGN = (
    (r"(oneapi/)?tbb/", ("attention", "cache"), "oneTBB"),
    (r"hwy/|.*intrin\.h|arm_(neon|sve)\.h|cpuid\.h", ("kernels", "format", "cpu"), "Highway and intrinsics"),
    (r"(sys|linux|asm)/|(unistd|fcntl|dirent|numa|numaif|sched|pthread|poll|signal|dlfcn)\.h",
     ("memory", "cpu"), "OS headers"),
)

# Folders outside src/ whose files may see private headers: tests of single rooms.
WHITE_BOX = ("tests/unit/", "tests/kernels/", "tests/property/", "tests/stress/", "tests/contract/",
             "tests/fuzz/", "tests/support/", "tests/emulation/")

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70
