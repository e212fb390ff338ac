"""Write a measured setting into deployment files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from keras_bn.errors import KerasBNError
from keras_bn.profiling.measurement import Measurement
from keras_bn.profiling.plan import memory_limit
from keras_bn.profiling.server_settings import batching

_THREADS = "--tensorflow_inter_op_parallelism="
_BATCHING = re.compile(r"^( *)(?:# )?(- --(?:enable_batching|batching_parameters_file)=.*\n)", re.MULTILINE)


def write_setting(folder: str | os.PathLike[str], chosen: Measurement) -> list[Path]:
    """Write the threads, resources and batching of a setting into the deployment files in a folder.

    The files are those of `serving/` or edited copies: `batching.config`, and Compose, Kubernetes and KServe
    files that start tensorflow_model_server. What is written are the threads, whether requests are batched,
    the CPUs, which are as many as the threads, and the memory, which is twice what was resident, since an
    update holds two versions. Comments and everything else are kept.

    Args:
        folder: Folder that is searched, with the folders in it.
        chosen: The setting, `for_latency` or `for_throughput` of a `Plan`.

    Returns:
        The files that describe the server. Those that already have these values are not written.

    Raises:
        KerasBNError: If no file in `folder` starts tensorflow_model_server, or if one of them has no place
            for a value. No file is changed then.
    """
    texts = {}
    for file in sorted(Path(folder).rglob("*")):
        if file.name == "batching.config":
            texts[file] = _batching_config(file, chosen)
        elif file.suffix in (".yml", ".yaml") and _THREADS in file.read_text(encoding="utf-8"):
            texts[file] = _container(file, chosen)
    if not any(file.suffix != ".config" for file in texts):
        raise KerasBNError(
            f"no YAML file in {os.fspath(folder)} sets {_THREADS[:-1]}; give the folder serving of the "
            "repository, or a copy of it."
        )
    for file, text in texts.items():
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    return list(texts)


def _container(file: Path, chosen: Measurement) -> str:
    """The text of a file that starts the server."""
    setting, memory = chosen.setting, memory_limit(chosen)
    before, flag, text = file.read_text(encoding="utf-8").rpartition(_THREADS)
    text = _put(file, r"\A\d+()", f"{setting.threads}", text)
    before = _put(file, r"(--tensorflow_intra_op_parallelism=)\d+", f"{setting.threads}", before)
    text = _BATCHING.sub(r"\1\2" if setting.batch_size > 1 else r"\1# \2", text)
    # The resources of the same container come after its arguments.
    if re.search(r"^ *cpus: ", text, re.MULTILINE):
        text = _put(file, r"( cpus: )[\d.]+", f"{setting.threads}", text)
        text = _put(file, r"( mem_limit: )\w+", f"{memory}m", text)
    else:
        text = _put(file, r'( requests: \{cpu: )"\d+"', f'"{setting.threads}"', text)
        text = _put(file, r"( requests: \{cpu: \S+ memory: )\w+", f"{memory // 2}Mi", text)
        text = _put(file, r"( limits: \{memory: )\w+", f"{memory}Mi", text)
    return before + flag + text


def _batching_config(file: Path, chosen: Measurement) -> str:
    text = file.read_text(encoding="utf-8")
    if chosen.setting.batch_size == 1:
        return text
    lines = batching(chosen.setting.batch_size, chosen.setting.threads).splitlines(keepends=True)
    sizes = [line for line in lines if line.startswith("allowed_batch_sizes")]
    for line in lines:
        if line not in sizes:
            field = line.split()[0]
            text = _put(file, rf"(?m)^({field} \{{ value: )\d+", line.split()[-2], text)
    text = re.sub(r"(?m)^allowed_batch_sizes: .*\n", "", text)
    return text.rstrip("\n") + "\n" + "".join(sizes)


def _put(file: Path, pattern: str, value: str, text: str) -> str:
    """`text` with `value` behind the group of the first match of `pattern`."""
    changed, count = re.subn(pattern, lambda found: found[1] + value, text, count=1)
    if not count:
        raise KerasBNError(f"{file} has nothing of the form {pattern!r} to write {value} to.")
    return changed
