"""`python -m eval.bench.gpu`: what a device gives beside what it could: scans against memory, embedding against matmul.

Runs on a CPU too, and says which device it was. Every figure is of this run; what cannot be measured here is named, and
so is what was asked of a device and fell back to the CPU. With several sizes, an index is made anew for each.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eval import bundled
from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.errors import MissingExtraError
from indexer.store.torch_scan import TorchScan
from indexer.store.vectors import best, row_scores
from indexer.text.chunks import split_chunks
from indexer.times import iso, now_us

K = 10
BATCH = 64
NOISE = 0.3
"""Length of what is added to a row that is repeated: it then lies at a cosine of .96 to the first."""

_ROUNDS = 20
_FEWEST = 3
_BUDGET_S = 10.0  # Work that takes longer is measured less often.
_MADE_AT_ONCE = 65_536
_WARMING = 1024  # Texts that are embedded before the clock runs: a device's libraries are loaded by their first use.
_ROWS = {"cuda": [1_000_000, 10_000_000], "cpu": [100_000]}
_TEXTS = {"cuda": 32_768, "cpu": 512}
_MATMUL = {"cuda": 8192, "cpu": 1024}
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}

Rows = NDArray[np.float16]
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Index(Protocol):
    """What is measured of a vector index."""

    def search(self, query: Floats, k: int, allowed: Ids | None = None) -> tuple[Ids, Floats]:
        """Return the k best."""
        ...

    def remove(self, ids: Ids) -> None:
        """Remove rows."""
        ...


@dataclass(frozen=True)
class Scan:
    """One index. Times are milliseconds a query; ``floor_ms`` is its float16 bytes through the bandwidth once.

    ``device_mib`` is what it took of the device's memory once it was built, ``None`` on a CPU.
    """

    engine: str
    rows: int
    dim: int
    build_s: float
    mib: float
    device_mib: float | None
    floor_ms: float
    p50_ms: float
    batch_ms: float | None
    tenth_ms: float
    deleted_ms: float
    recall: float


@dataclass(frozen=True)
class Embedding:
    """Tokens a second, the arithmetic that is, and its share of the matmul that the device was measured at.

    ``tokenized_per_s`` is what the tokenizer gives alone: a device that could do more waits for it.
    """

    encoder: str
    device: str
    texts: int
    tokens: int
    tokens_per_s: float
    tokenized_per_s: float
    tflops: float
    share_of_peak: float


def seconds(work: Callable[[], object], device: str, rounds: int = _ROUNDS) -> float:
    """Return the median time of some work, the device's part of it included."""
    work()
    times: list[float] = []
    while len(times) < min(rounds, _FEWEST) or (len(times) < rounds and sum(times) < _BUDGET_S):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: str) -> float:
    """Return bytes a second through the device's memory, by copying: what is read and what is written count."""
    size = _COPIED_BYTES[device]
    one = torch.ones(size, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    return 2 * size / seconds(lambda: other.copy_(one), device)


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a large square product: two for each multiplication."""
    n = _MATMUL[device]
    one, other = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: one @ other, device, rounds=5)


def texts_of_notes(encoder: Encoder) -> list[str]:
    """Return the passages of the bundled notes."""
    texts = []
    for line in bundled.notes_path().read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        spans = split_chunks(
            note["text"], language=note.get("language"), token_spans=encoder.token_spans, max_tokens=256
        )
        texts += [note["text"][chunk.start : chunk.end] for chunk in spans]
    return texts


def turned(vectors: Floats, dim: int, generator: np.random.Generator) -> Floats:
    """Return the vectors at another width: turned into more dimensions without loss, or into as many of them."""
    width = vectors.shape[1]
    if dim == width:
        return vectors
    turn = np.linalg.qr(generator.standard_normal((max(dim, width), min(dim, width))))[0].astype(np.float32)
    found = vectors @ (turn.T if dim > width else turn)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9), np.float32)


def rows_like(vectors: Floats, n: int, device: str, seed: int = 0) -> Rows:
    """Return ``(n, dim)`` unit rows: the vectors, then noisy copies of them, made on the device."""
    rows = np.empty((n, vectors.shape[1]), np.float16)
    rows[: len(vectors)] = vectors[:n]
    generator = torch.Generator(device).manual_seed(seed)
    kept = torch.from_numpy(np.ascontiguousarray(vectors)).to(device)
    for start in range(len(vectors), n, _MADE_AT_ONCE):
        size = (min(_MADE_AT_ONCE, n - start),)
        picked = kept[torch.randint(len(kept), size, generator=generator, device=device)]
        noise = torch.randn(picked.shape, generator=generator, device=device)
        made = picked + torch.nn.functional.normalize(noise) * NOISE
        rows[start : start + len(made)] = torch.nn.functional.normalize(made).half().cpu().numpy()
    return rows


def exact(rows: Rows, queries: Floats) -> list[set[int]]:
    """Return each query's best ids by its scores of all rows: what recall is counted against."""
    ids = np.arange(len(rows), dtype=np.int64)
    return [set(best(ids, row_scores(rows, query), K)[0].tolist()) for query in queries]


def measure(
    name: str,
    make: Callable[[], Index],
    queries: Floats,
    rows: Rows,
    wanted: list[set[int]],
    device: str,
    bytes_per_s: float,
) -> Scan:
    """Return an index's figures: built, asked, asked in a tenth of the rows, asked after a hundredth was deleted."""
    before = _free(device)
    started = time.perf_counter()
    index = make()
    _wait(device)
    build_s = time.perf_counter() - started
    after_build = _free(device)
    ids = np.arange(len(rows), dtype=np.int64)
    tenth = ids[ids // 50 % 10 == 0]  # In runs of 50, as the notes of patients arrive.
    found = [set(index.search(query, K)[0].tolist()) for query in queries]
    recall = float(np.mean([len(got & want) / K for got, want in zip(found, wanted, strict=True)]))
    asked = itertools.cycle(queries)
    p50 = seconds(lambda: index.search(next(asked), K), device)
    within = seconds(lambda: index.search(next(asked), K, tenth), device)
    many = getattr(index, "search_many", None)
    batch = np.resize(queries, (BATCH, rows.shape[1]))
    batch_s = None if many is None else seconds(lambda: many(batch, K), device, rounds=5) / BATCH
    index.remove(ids[::100])
    after = seconds(lambda: index.search(next(asked), K), device)
    return Scan(
        engine=name,
        rows=len(rows),
        dim=rows.shape[1],
        build_s=build_s,
        mib=rows.nbytes / 2**20,
        device_mib=None if before is None or after_build is None else (before - after_build) / 2**20,
        floor_ms=rows.nbytes / bytes_per_s * 1e3,
        p50_ms=p50 * 1e3,
        batch_ms=None if batch_s is None else batch_s * 1e3,
        tenth_ms=within * 1e3,
        deleted_ms=after * 1e3,
        recall=recall,
    )


def _free(device: str) -> int | None:
    """Return how much of the device's memory nobody has, torch's own reserve given back; ``None`` on a CPU."""
    gc.collect()
    if device != "cuda":
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def engines(rows: Rows, device: str) -> dict[str, Callable[[], Index]]:
    """Return what makes each index over the rows, by name."""
    ids = np.arange(len(rows), dtype=np.int64)

    def on_gpus(kind: Any) -> Index:
        from indexer.store.faiss_gpu import FaissGpuIndex

        return FaissGpuIndex.from_base(ids, rows, kind=kind)

    def on_the_host() -> Index:
        from indexer.store.faiss_index import FaissVectorIndex

        return FaissVectorIndex.from_matrix(ids, rows)

    return {
        f"torch float16 on {device}": lambda: TorchScan.from_matrix(ids, rows, device, "float16"),
        f"torch bfloat16 on {device}": lambda: TorchScan.from_matrix(ids, rows, device, "bfloat16"),
        "FAISS flat on GPUs": lambda: on_gpus("flat"),
        "FAISS IVF+PQ on GPUs": lambda: on_gpus("ivf"),
        "FAISS flat on the CPU": on_the_host,
    }


def embedding(encoder: Encoder, texts: list[str], peak: float) -> Embedding:
    """Return how fast texts become vectors, end to end: tokenised, moved, multiplied, fetched.

    Counted are the linear layers, two operations a weight and token; attention comes on top of that.
    """
    encoder.encode_passages(texts[:_WARMING])
    started = time.perf_counter()
    tokens = sum(map(len, encoder.token_spans(texts)))
    tokenized = tokens / (time.perf_counter() - started)
    started = time.perf_counter()
    encoder.encode_passages(texts)
    rate = tokens / (time.perf_counter() - started)
    operations = 2.0 * getattr(encoder, "linear_weights", 0) * rate
    device = str(getattr(encoder, "device", "cpu"))
    share = operations / peak if peak else 0.0
    return Embedding(encoder.spec.model_id, device, len(texts), tokens, rate, tokenized, operations / 1e12, share)


def table(scans: list[Scan]) -> str:
    """Return one line an index; ``floor`` is its bytes through the measured bandwidth, ``of it`` the part used."""
    lines = [
        f"{'index':24} {'build s':>8} {'MiB':>8} {'device':>8} {'floor ms':>9} {'p50 ms':>9} {'of it':>6} "
        f"{'batch ms':>9} {'10 % ms':>9} {'deleted':>9} {'recall@10':>10}"
    ]
    lines += [
        f"{row.engine:24} {row.build_s:8.2f} {row.mib:8.0f} {_or_dash(row.device_mib, '.0f'):>8} {row.floor_ms:9.3f} "
        f"{row.p50_ms:9.3f} {row.floor_ms / row.p50_ms:6.0%} {_or_dash(row.batch_ms, '.3f'):>9} {row.tenth_ms:9.3f} "
        f"{row.deleted_ms:9.3f} {row.recall:10.4f}"
        for row in scans
    ]
    return "\n".join(lines)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="python -m eval.bench.gpu", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=_ROWS[device], help="how many; each size is measured")
    parser.add_argument("--dim", type=int, help="width of a row; without it the encoder's")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument(
        "--texts", type=int, default=_TEXTS[device], help="how many texts are embedded; 0 leaves that out"
    )
    parser.add_argument("--vectors", default="hashing", help="the encoder that the rows are made with")
    parser.add_argument("--encoder", default="compact", help="the encoder whose speed is measured")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    given = parser.parse_args(argv)
    record: dict[str, Any] = {"made_at": iso(now_us()), **_described(device), "scans": [], "absent": {}}
    bytes_per_s = record["bytes_per_s"] = bandwidth(device)
    print(f"memory: {bytes_per_s / 1e9:,.1f} GB/s by copying", flush=True)  # noqa: T201
    maker = load_encoder(given.vectors)
    texts = texts_of_notes(maker)
    vectors = maker.encode_passages(texts)
    vectors = turned(vectors, given.dim or vectors.shape[1], np.random.default_rng(0))
    queries, kept = vectors[: given.queries], vectors[given.queries :]
    record["source"] = f"passages of the bundled notes by {given.vectors} ({len(kept):,}), the others noisy copies"
    given.out.mkdir(parents=True, exist_ok=True)
    for n in given.rows:
        print(f"\n{n:,} rows of {vectors.shape[1]}: {record['source']}", flush=True)  # noqa: T201
        scans, absent = _scans(queries, rows_like(kept, n, device), device, bytes_per_s)
        print(table(scans))  # noqa: T201
        for name, reason in absent.items():
            print(f"not measured: {name}: {reason}", flush=True)  # noqa: T201
        record["scans"] += [asdict(row) for row in scans]
        record["absent"] |= {f"{name}, {n:,} rows": reason for name, reason in absent.items()}
        _write(given.out, record)
    if given.texts:
        record["embedding"] = asdict(_embedding(load_encoder(given.encoder), texts, given.texts, device))
        _write(given.out, record)
    print(f"files: {given.out}")  # noqa: T201


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _described(device: str) -> dict[str, str]:
    """Return and print what a figure depends on: the device, its driver's and torch's versions, the processors."""
    named = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found = {
        "device": f"{device} ({named})",
        "processors": f"{os.cpu_count()}, {torch.get_num_threads()} threads",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
    }
    print("\n".join(f"{name}: {value}" for name, value in found.items()))  # noqa: T201
    return found


def _scans(queries: Floats, rows: Rows, device: str, bytes_per_s: float) -> tuple[list[Scan], dict[str, str]]:
    """Return every index's figures, and why others have none."""
    scans: list[Scan] = []
    absent: dict[str, str] = {}
    wanted = exact(rows, queries)
    for name, make in engines(rows, device).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # It tells that the CPU did what a device was asked.
                scans.append(measure(name, make, queries, rows, wanted, device, bytes_per_s))
        except (MissingExtraError, RuntimeError, RuntimeWarning) as error:
            absent[name] = (str(error).splitlines() or [type(error).__name__])[-1]
    return scans, absent


def _embedding(encoder: Encoder, texts: list[str], n: int, device: str) -> Embedding:
    dtype = next(
        (kind for kind in (torch.bfloat16, torch.float16) if str(kind) in str(getattr(encoder, "device", ""))),
        torch.float32,
    )
    peak = matmul_peak(device, dtype)
    made = embedding(encoder, [texts[at % len(texts)] for at in range(n)], peak)
    print(  # noqa: T201
        f"\n{made.encoder} on {made.device}: {made.texts:,} texts, {made.tokens:,} tokens, {made.tokens_per_s:,.0f} "
        f"tokens/s\nthe tokenizer alone: {made.tokenized_per_s:,.0f} tokens/s; linear layers: {made.tflops:.3f} of "
        f"{peak / 1e12:.3f} TFLOP/s by matmul ({made.share_of_peak:.0%})"
    )
    return made


if __name__ == "__main__":
    main()
