"""Version folders: which numbers a model's base path holds and which of them its policy asks for."""

from __future__ import annotations

import logging
import os
import re

from tensorflow_serving.config import model_server_config_pb2

_log = logging.getLogger(__name__)
_INT64 = range(-(2**63), 2**63)


def versions(config: model_server_config_pb2.ModelConfig) -> dict[int, str]:
    """The versions to serve, each with its path: what is on disk, as the model's version policy chooses.

    A child of the base path is a version if its whole name is an integer; it need not be a folder, and a name
    with leading zeros counts. Nothing to serve is no error, and is logged.

    Raises:
        OSError: the base path cannot be listed.
    """
    found = _numbered(config)
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        wanted = set(found)
    elif choice == "specific":
        wanted = set(policy.specific.versions)
        for missing in sorted(wanted - set(found)):
            _log.warning(
                "Version %d of servable %s, which was requested to be served as a 'specific' version in the "
                "servable's version policy, was not found in the file system",
                missing,
                config.name,
            )
        if not wanted:
            _log.warning("No specific versions requested for servable %s.", config.name)
    else:
        wanted = set(sorted(found)[-max(policy.latest.num_versions, 1) :])
    if not found:
        _log.warning(
            "No versions of servable %s found under base path %s. Did you forget to name your leaf "
            "directory as a "
            "number (eg. '/1/')?",
            config.name,
            config.base_path,
        )
    return {number: path for number, path in found.items() if number in wanted}


def _numbered(config: model_server_config_pb2.ModelConfig) -> dict[int, str]:
    found: dict[int, str] = {}
    for child in sorted(os.listdir(config.base_path)):
        if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", child, re.ASCII) or int(child) not in _INT64:
            continue
        number = int(child)
        if number in found:
            _log.warning(
                "Duplicate version directories detected. Version %d will be loaded from %s, %s will be "
                "ignored.",
                number,
                os.path.basename(found[number]),
                child,
            )
        else:
            found[number] = os.path.join(config.base_path, child)
    return found
