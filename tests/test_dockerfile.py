"""What the images must have, as far as their recipe tells: nobody here has a GPU to try them on."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of those that it is built on, in their order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    pairs = [(word.upper(), " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]
    begins = [i for i, (word, _) in enumerate(pairs) if word == "FROM"]
    stages: dict[str, list[tuple[str, str]]] = {}
    for begin, end in zip(begins, [*begins[1:], len(pairs)], strict=True):
        base, _, own = pairs[begin][1].partition(" AS ")
        stages[own] = [*stages.get(base, []), *pairs[begin + 1 : end]]
    return stages[name]


def environment(name: str) -> dict[str, str]:
    given = [shlex.split(rest) for word, rest in stage(name) if word == "ENV"]
    return dict(entry.split("=", 1) for entries in given for entry in entries)


def installed_by_apt(name: str) -> set[str]:
    """What root installs from Debian; without it being asked for, not what is merely recommended."""
    packages: set[str] = set()
    for word, rest in stage(name):
        if word == "USER":
            break
        for command in rest.split("&&") if word == "RUN" else []:
            if "apt-get install" in command:
                packages |= {each for each in command.split("apt-get install")[1].split() if not each.startswith("-")}
    return packages


def test_the_gpu_image_has_a_compiler_for_the_kernels_that_triton_writes() -> None:
    """It compiles a launcher in C for each of them, at run time, and links it with libc."""
    assert {"gcc", "libc6-dev"} <= installed_by_apt("gpu")
    assert environment("gpu")["CC"] == "gcc"
    assert "gcc" not in installed_by_apt("cpu")


def test_the_gpu_image_keeps_compiled_kernels_and_avoids_the_slow_ones_of_its_torch() -> None:
    given = environment("gpu")
    assert {given["TORCHINDUCTOR_CACHE_DIR"], given["TRITON_CACHE_DIR"]} == {"/cache/inductor", "/cache/triton"}
    assert given["TORCHINDUCTOR_LOOP_REINDEXING_AFTER_FUSION"] == "0"


def test_all_that_images_install_with_pip_is_pinned() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {"torch", "triton", "xformers", "accelerate"} <= pinned
    for name in ("cpu", "gpu"):
        commands = [part for word, rest in stage(name) if word == "RUN" for part in rest.split("&&") if "pip " in part]
        assert commands
        assert all("-c constraints.txt" in command for command in commands)
