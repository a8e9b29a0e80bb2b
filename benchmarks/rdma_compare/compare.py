#!/usr/bin/env python3
"""Volley's rdma fabric beside bare verbs (raw_verbs) and perftest, by size, in one run.

At each size every program runs once per round, in turn, so that all of them see the same moments of the
machine. A ratio is of two runs of the same round; the tables hold medians over the rounds.
docs/benchmarks.md explains the output.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

LATENCY_MAX = 1.25
BANDWIDTH_MIN = 0.95
PORTS = itertools.count(20000)
PERFTEST_MB = 1 << 20


def message_bytes(size):
    """What a message of fabric_verbs with rows of `size` bytes takes: header and entries, then the rows."""
    rows = max(1, size // (64 << 10))
    return (64 + 8 * rows + 63) // 64 * 64 + size


class Runner:
    def __init__(self, options, folder):
        self.options = options
        self.folder = folder
        self.passive_device, self.active_device = options.devices.split(",")

    def pair(self, passive, active):
        """Runs the two ends to their end and returns what the active one printed."""
        limit = self.options.limit_s
        server = subprocess.Popen(passive, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            for _ in range(100):
                done = subprocess.run(active, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                      timeout=limit, check=False)
                # perftest does not try again when the passive end is not there yet.
                if done.returncode == 0 or server.poll() is not None or "ouldn't connect" not in done.stderr:
                    break
            if done.returncode != 0:
                sys.exit(f"compare: {' '.join(active)} ended with {done.returncode}: {done.stderr.strip()}")
            server.wait(timeout=limit)
            if server.returncode != 0:
                sys.exit(f"compare: {' '.join(passive)} ended with {server.returncode}: "
                         f"{server.stderr.read().decode().strip()}")
            return done.stdout
        finally:
            server.kill()
            server.wait()
            server.stderr.close()

    def ours(self, program, mode, size, messages, *extra):
        """The one result of raw_verbs or fabric_verbs."""
        options, path = self.options, os.path.join(self.folder, "report.json")
        port = str(next(PORTS))
        common = [os.path.join(options.binaries, program), "--gid-index", str(options.gid_index),
                  "--wait", options.wait, "--tcp-port", port, "--deadline-s", str(options.limit_s)]
        self.pair(common + ["--device", self.passive_device],
                  common + ["--device", self.active_device, "--connect", options.address, "--mode", mode,
                            "--sizes", str(size), "--messages", str(messages), "--data-mib-max", "1024",
                            "--window", str(options.window), "--json", path, *extra])
        with open(path, encoding="utf-8") as file:
            return json.load(file)["results"][0]

    def perftest(self, program, size, messages, *extra):
        """The last line of numbers that perftest prints."""
        options = self.options
        common = [program, "-F", "-x", str(options.gid_index), "-s", str(size), "-n", str(max(messages, 5)),
                  "-p", str(next(PORTS)), *extra]
        if options.wait != "poll" and program == "ib_send_lat":  # ib_write_bw can only spin.
            common.append("-e")
        out = self.pair(common + ["-d", self.passive_device],
                        common + ["-d", self.active_device, options.address])
        lines = [line.split() for line in out.splitlines() if line.split()[:1] == [str(size)]]
        if not lines:
            sys.exit(f"compare: {program} printed no result for {size} bytes:\n{out}")
        return [float(value) for value in lines[-1]]

    def programs(self, mode, size, messages):
        """Name and call; the calls return microseconds of a round trip, or MB/s."""
        if mode == "latency":
            def run(program, length):
                return self.ours(program, mode, length, messages)["round_trip_us"]["median"]
            found = {"raw": lambda: run("raw_verbs", size), "volley": lambda: run("fabric_verbs", size),
                     "raw alike": lambda: run("raw_verbs", message_bytes(size))}
            if shutil.which("ib_send_lat"):
                # Half a round trip: bytes, iterations, t_min, t_max, t_typical.
                found["ib_send_lat"] = lambda: 2 * self.perftest("ib_send_lat", size, messages)[4]
        else:
            def run(program, length, *extra):  # MB/s of rows.
                return self.ours(program, mode, length, messages, *extra)["mb_per_s"] * size / length
            found = {"raw": lambda: run("raw_verbs", size), "volley": lambda: run("fabric_verbs", size),
                     "raw alike": lambda: run("raw_verbs", message_bytes(size), "--acknowledge")}
            if shutil.which("ib_write_bw"):
                window = self.options.window
                batch = str(max(window // 4, 1))  # As raw_verbs signals.
                # Bytes, iterations, peak, average in MiB/s.
                found["ib_write_bw"] = lambda: self.perftest(
                    "ib_write_bw", size, max(messages, window), "-t", str(window), "-Q", batch)[3] * PERFTEST_MB / 1e6
        return found


def message_count(options, mode, size):
    """About the same time at each size."""
    seconds_each = 4e-4 + size / (15e6 if mode == "latency" else 30e6)
    least = 8 if mode == "latency" else 2 * options.window
    return max(least, int(options.run_ms / 1e3 / seconds_each))


def measure(options, runner, mode, size, number, rounds):
    programs = runner.programs(mode, size, message_count(options, mode, size))
    names = list(programs)
    shift = number % len(names)  # Nobody is always the first.
    for name in names[shift:] + names[:shift]:
        rounds.setdefault(name, []).append(programs[name]())


def ratio_of(theirs, ours):
    """The median of the pairs, and between which values the middle half of them lies."""
    values = [b / a for a, b in zip(theirs, ours)]
    low, middle, high = (statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1
                         else values * 3)
    return {"median": middle, "quartiles": [low, high], "of_medians":
            statistics.median(ours) / statistics.median(theirs)}


def size_text(size):
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB" if size >= 1024 else f"{size} B"


def table(mode, measured):
    aim, unit = ((f"at most {LATENCY_MAX}", "us a round trip") if mode == "latency"
                 else (f"at least {BANDWIDTH_MIN}", "MB/s"))
    names = list(measured[0]["rounds"])
    against = [name for name in names if name.startswith("raw")]
    lines = [f"### {mode}: {unit}, medians; aim for volley / raw: {aim}", "",
             "| size | " + " | ".join(names) + " | " +
             " | ".join(f"volley / {name} | middle half" for name in against) + " | aim |",
             "|---:|" + "---:|" * (len(names) + 2 * len(against)) + "---|"]
    for line in measured:
        cells = [size_text(line["size_bytes"])]
        cells += [f"{statistics.median(line['rounds'][name]):.4g}" for name in names]
        for name in against:
            ratio = line["volley_over"][name]
            cells += [f"{ratio['median']:.2f}", "{:.2f} to {:.2f}".format(*ratio["quartiles"])]
        cells.append("met" if line["met"] else "missed")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summarize(mode, size, rounds):
    ratios = {name: ratio_of(rounds[name], rounds["volley"]) for name in rounds if name != "volley"}
    median = ratios["raw"]["median"]
    return {"size_bytes": size, "rounds": rounds, "volley_over": ratios,
            "met": median <= LATENCY_MAX if mode == "latency" else median >= BANDWIDTH_MIN}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", default="build/release/bin", help="where the programs are")
    parser.add_argument("--devices", default="rxe0,rxe1", help="of the passive and of the active end")
    parser.add_argument("--address", default=os.environ.get("RXE0_ADDRESS", "127.0.0.1"),
                        help="of the passive end, numeric")
    parser.add_argument("--gid-index", type=int, default=1)
    parser.add_argument("--wait", default="yield", choices=("poll", "yield", "event"),
                        help="unless this is poll, ib_send_lat sleeps (-e); ib_write_bw always spins")
    parser.add_argument("--modes", default="latency,bandwidth")
    parser.add_argument("--sizes", default="64,256,1024,4096,16384,65536,262144,1048576")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--run-ms", type=int, default=200, help="about the time of one run of one program")
    parser.add_argument("--window", type=int, default=16, help="messages in flight, of bandwidth")
    parser.add_argument("--limit-s", type=int, default=60, help="for one run of one program")
    options = parser.parse_args()

    results = os.environ.get("RESULTS", ".")
    report = {"bench": "rdma_compare", "rounds": options.rounds, "wait": options.wait,
              "window": options.window, "cpus": os.cpu_count(), "devices": options.devices}
    text = ""
    with tempfile.TemporaryDirectory(prefix="volley-rdma-") as folder:
        runner = Runner(options, folder)
        for mode in options.modes.split(","):
            sizes = [int(size) for size in options.sizes.split(",")]
            rounds = {size: {} for size in sizes}
            for number, size in itertools.product(range(options.rounds), sizes):
                measure(options, runner, mode, size, number, rounds[size])
                if size == sizes[-1]:
                    print(f"{mode}: round {number + 1} of {options.rounds}", file=sys.stderr)
            measured = [summarize(mode, size, {name: rounds[size][name]
                                               for name in runner.programs(mode, size, 1)})
                        for size in sizes]
            report[mode] = measured
            text += table(mode, measured) + "\n"
            # After each mode: a run that is ended early leaves what it has.
            with open(os.path.join(results, "rdma.md"), "w", encoding="utf-8") as file:
                file.write(text)
            with open(os.path.join(results, "rdma.json"), "w", encoding="utf-8") as file:
                json.dump(report, file, indent=2)
                file.write("\n")
    print(text, end="")


if __name__ == "__main__":
    main()
