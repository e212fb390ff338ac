"""The measurements, and the server settings that follow from them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from keras_bn.profiling import picture
from keras_bn.profiling.measurement import Measurement, Setting
from keras_bn.profiling.server_settings import batching, flags

_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """The result of `profile`.

    Attributes:
        measured_through: The program that ran the model, a real server or a session of a fresh process.
        cores: Number of processor cores that this process may use.
        measurements: One measurement for each setting.
    """

    measured_through: str
    cores: int
    measurements: tuple[Measurement, ...]

    @property
    def for_latency(self) -> Measurement:
        """The setting with the lowest median latency of one client."""
        alone = [each for each in self.measurements if each.setting.clients == 1]
        return min(alone, key=lambda each: each.median)

    @property
    def for_throughput(self) -> Measurement:
        """The setting that answers the most requests per second."""
        return max(self.measurements, key=lambda each: each.throughput)

    def table(self) -> str:
        """A Markdown table of the measurements."""
        rows = [
            "| precision | threads | batch | clients | median ms | p99 ms | requests/s | memory MiB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for each in self.measurements:
            setting = each.setting
            rows.append(
                f"| {setting.precision} | {setting.threads} | {setting.batch_size} | {setting.clients} | "
                f"{1e3 * each.median:.2f} | {1e3 * each.p99:.2f} | {each.throughput:.1f} | "
                f"{each.memory / _MIB:.0f} |"
            )
        return "\n".join(rows)

    def advice(self, chosen: Measurement) -> str:
        """Flags, batching fields and container resources of one setting."""
        setting = chosen.setting
        lines = ["tensorflow_model_server flags:"]
        lines += [f"  {flag}" for flag in flags(setting.threads, setting.clients)]
        if setting.batch_size > 1:
            lines += [
                "  --enable_batching=true",
                "  --batching_parameters_file=batching.config",
                "batching.config:",
            ]
            lines += [f"  {line}" for line in batching(setting.batch_size, setting.threads).splitlines()]
        cpus, memory = setting.threads, memory_limit(chosen)
        resources = f'requests: {{cpu: "{cpus}", memory: {memory}Mi}}, limits: {{memory: {memory}Mi}}'
        lines += ["Docker Compose:", f"  cpus: {cpus}", f"  mem_limit: {memory}m"]
        lines += ["Kubernetes:", f"  resources: {{{resources}}}"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything as JSON; latencies are in seconds, memory in bytes."""
        return json.dumps(
            {
                **asdict(self),
                "for_latency": asdict(self.for_latency),
                "for_throughput": asdict(self.for_throughput),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        written = json.loads(text)
        measurements = [
            Measurement(**{**each, "setting": Setting(**each["setting"])}) for each in written["measurements"]
        ]
        return cls(written["measured_through"], written["cores"], tuple(measurements))

    def to_svg(self) -> str:
        """Latency against throughput of every setting, as a picture."""
        return picture.svg(self.measurements, [self.for_latency, self.for_throughput])

    def __str__(self) -> str:
        """The table and the two optima."""
        latency, throughput = self.for_latency, self.for_throughput
        return "\n\n".join(
            [
                f"Measured through {self.measured_through}, on {self.cores} cores.",
                self.table(),
                f"Lowest latency: {_words(latency)}, {1e3 * latency.median:.2f} ms (median, one client).\n"
                f"{self.advice(latency)}",
                f"Highest throughput: {_words(throughput)}, {throughput.throughput:.1f} requests/s at a p99 "
                f"of {1e3 * throughput.p99:.2f} ms ({throughput.setting.clients} "
                f"clients).\n{self.advice(throughput)}",
            ]
        )


def _words(chosen: Measurement) -> str:
    setting = chosen.setting
    batch = "no batching" if setting.batch_size == 1 else f"batches of up to {setting.batch_size}"
    return f"{setting.precision}, {setting.threads} thread{'s' * (setting.threads > 1)}, {batch}"


def memory_limit(chosen: Measurement) -> int:
    """MiB for a container: twice what was resident, since an update holds two versions."""
    return max(256, 2 * chosen.memory // _MIB)
