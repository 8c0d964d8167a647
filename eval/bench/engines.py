"""The engines under test, each as its users would set it up: build once, search one query at a time.

A peer that is not installed, or that refuses the work, is named in the report and left out.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.bench.workload import Floats, Workload

Found = NDArray[np.int64]


class Engine(Protocol):
    """Built over a workload, then asked.

    ``filters``: whether it can narrow a search to some rows; ``efforts``: what `tune` takes, from quick to thorough.
    """

    name: str
    filters: bool
    efforts: tuple[int, ...]
    folder: tempfile.TemporaryDirectory[str] | None

    def build(self, work: Workload) -> None:
        """Take all rows."""
        ...

    def tune(self, effort: int) -> None:
        """Spend so much on each search from here on."""
        ...

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Return the ids of the k best rows among those that the filter leaves."""
        ...


class Untuned:
    """An engine that has nothing to tune, or nothing that its users would."""

    efforts: tuple[int, ...] = ()
    folder: tempfile.TemporaryDirectory[str] | None = None

    def tune(self, effort: int) -> None:
        """Do nothing."""


EFFORTS: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
"""Candidates that a graph keeps in view."""


OWN_KINDS: dict[str, dict[str, Any]] = {
    "flat": {"kind": "flat"},
    "codes": {"kind": "codes", "exact_scope": 2**62},
    "short": {"kind": "codes", "exact_scope": 20_000},
    "store": {"kind": "codes"},
}
"""clinrag's own index: float16 rows scanned in place; codes of all rows, exact; shorter ones wherever they
suffice; or as a collection has it, which answers exactly up to 200,000 rows."""


class Clinrag(Untuned):
    """clinrag's own index of a kind of `OWN_KINDS`."""

    filters = True

    def __init__(self, kind: str) -> None:
        """Take the kind."""
        self.name, self._kind = f"clinrag {kind}", kind
        if kind == "short":
            self.efforts = (50, 100, 150, 200, 300, 400, 600, 800)

    def tune(self, effort: int) -> None:
        """Score ``effort`` rows exactly; before this is called, as many as the index itself chose."""
        coded = self._index._coded
        if coded is not None and coded.shorter is not None:  # Few rows have none.
            coded.shorter.counts = np.full_like(coded.shorter.counts, effort)

    def build(self, work: Workload) -> None:
        """Take all rows as the collection would: a float16 matrix."""
        from indexer.store.faiss_index import FaissVectorIndex

        ids = np.arange(len(work.vectors), dtype=np.int64)
        self._index = FaissVectorIndex.from_matrix(ids, work.vectors.astype(np.float16), **OWN_KINDS[self._kind])
        self._allowed = {share: None if share == 1.0 else work.allowed(share) for share in work.groups}

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search among the allowed ids."""
        return self._index.search(query, k, self._allowed[selectivity])[0]


class FaissHnsw(Untuned):
    """FAISS HNSW32 with a selector."""

    name, filters, efforts = "FAISS HNSW32", True, EFFORTS
    _effort = 128

    def build(self, work: Workload) -> None:
        """Build the graph on one thread."""
        self._faiss = faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexHNSWFlat(work.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        self._index.add(work.vectors)
        self._selectors = {s: faiss.IDSelectorBatch(work.allowed(s)) for s in work.groups if s < 1}

    def tune(self, effort: int) -> None:
        """Set ef."""
        self._effort = effort

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with a selector."""
        options = self._faiss.SearchParametersHNSW(efSearch=self._effort, sel=self._selectors.get(selectivity))
        return np.asarray(self._index.search(query[None], k, params=options)[1][0], dtype=np.int64)


class Hnswlib(Untuned):
    """hnswlib, M 32."""

    name, filters, efforts = "hnswlib", True, EFFORTS

    def build(self, work: Workload) -> None:
        """Build the graph on one thread."""
        hnswlib = importlib.import_module("hnswlib")
        self._index = hnswlib.Index(space="ip", dim=work.vectors.shape[1])
        self._index.init_index(len(work.vectors), M=32, ef_construction=200)
        self._index.add_items(work.vectors, num_threads=1)
        self._index.set_ef(128)
        self._index.set_num_threads(1)
        self._groups = work.groups

    def tune(self, effort: int) -> None:
        """Set ef."""
        self._index.set_ef(effort)

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with ef 128, filtered by a callback."""
        column = self._groups[selectivity]
        keep = None if selectivity == 1.0 else (lambda row: bool(column[row] == 0))
        return np.asarray(self._index.knn_query(query, k, filter=keep)[0][0], dtype=np.int64)


class Usearch(Untuned):
    """usearch, float16, connectivity 32."""

    name, filters, efforts = "usearch", False, EFFORTS

    def build(self, work: Workload) -> None:
        """Build the graph on one thread."""
        module = importlib.import_module("usearch.index")
        self._index = module.Index(
            ndim=work.vectors.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_search=128
        )
        self._index.add(np.arange(len(work.vectors)), work.vectors, threads=1)

    def tune(self, effort: int) -> None:
        """Set the expansion."""
        self._index.expansion_search = effort

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search unfiltered."""
        return np.asarray(self._index.search(query, k, threads=1).keys, dtype=np.int64)


class Chroma(Untuned):
    """Chroma, embedded and persistent."""

    name, filters = "Chroma", True

    def build(self, work: Workload) -> None:
        """Add in its largest batches, one metadata key a selectivity."""
        chroma = importlib.import_module("chromadb")
        self.folder = tempfile.TemporaryDirectory()
        client = chroma.PersistentClient(path=self.folder.name)
        self._collection = client.create_collection("bench", configuration={"hnsw": {"space": "ip", "ef_search": 128}})
        for at in range(0, len(work.vectors), 5_000):
            rows = range(at, min(at + 5_000, len(work.vectors)))
            facts = [{f"g{share}": int(work.groups[share][row]) for share in work.groups} for row in rows]
            self._collection.add(ids=[str(row) for row in rows], embeddings=work.vectors[rows], metadatas=facts)

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with a where clause."""
        where = {f"g{selectivity}": 0} if selectivity < 1 else None
        found = self._collection.query(query_embeddings=[query], n_results=k, where=where, include=[])
        return np.array([int(one) for one in found["ids"][0]], dtype=np.int64)


class Lance(Untuned):
    """LanceDB, embedded, flat scan (its default below the size where an index pays)."""

    name, filters = "LanceDB", True

    def build(self, work: Workload) -> None:
        """Write one table."""
        lancedb = importlib.import_module("lancedb")
        arrow = importlib.import_module("pyarrow")
        self.folder = tempfile.TemporaryDirectory()
        dim = work.vectors.shape[1]
        columns = {
            "id": arrow.array(np.arange(len(work.vectors))),
            "vector": arrow.FixedSizeListArray.from_arrays(arrow.array(work.vectors.ravel()), dim),
        }
        columns |= {_column(share): arrow.array(work.groups[share]) for share in work.groups}
        self._table = lancedb.connect(self.folder.name).create_table("bench", arrow.table(columns))

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with a prefilter."""
        asked = self._table.search(query).distance_type("dot").limit(k).select(["id", "_distance"])
        if selectivity < 1:
            asked = asked.where(f"{_column(selectivity)} = 0", prefilter=True)
        return np.array([row["id"] for row in asked.to_list()], dtype=np.int64)


class QdrantLocal(Untuned):
    """Qdrant's local mode."""

    name, filters = "Qdrant local", True

    def build(self, work: Workload) -> None:
        """Upload everything."""
        qdrant = importlib.import_module("qdrant_client")
        self._models = models = importlib.import_module("qdrant_client.models")
        self._client = qdrant.QdrantClient(":memory:")
        distance = models.VectorParams(size=work.vectors.shape[1], distance=models.Distance.DOT)
        self._client.create_collection("bench", vectors_config=distance)
        facts = [
            {_column(share): int(work.groups[share][row]) for share in work.groups} for row in range(len(work.vectors))
        ]
        self._client.upload_collection("bench", vectors=work.vectors, payload=facts, ids=range(len(work.vectors)))

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with a filter."""
        models = self._models
        narrowed = None
        if selectivity < 1:
            match = models.FieldCondition(key=_column(selectivity), match=models.MatchValue(value=0))
            narrowed = models.Filter(must=[match])
        found = self._client.query_points(
            "bench", query=query.tolist(), query_filter=narrowed, limit=k, with_payload=False
        )
        return np.array([point.id for point in found.points], dtype=np.int64)


class LangChainFaiss(Untuned):
    """LangChain's FAISS store, with its metadata filter."""

    name, filters = "LangChain FAISS", True

    def build(self, work: Workload) -> None:
        """Add everything at once."""
        stores = importlib.import_module("langchain_community.vectorstores")
        self._store = stores.FAISS.from_embeddings(
            zip((str(row) for row in range(len(work.vectors))), work.vectors.tolist(), strict=True),
            embedding=lambda _text: [],
            metadatas=[{_column(s): int(work.groups[s][r]) for s in work.groups} for r in range(len(work.vectors))],
            distance_strategy="MAX_INNER_PRODUCT",
        )

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with a filter dictionary and its default fetch_k."""
        narrowed = {_column(selectivity): 0} if selectivity < 1 else None
        found = self._store.similarity_search_by_vector(query.tolist(), k=k, filter=narrowed)
        return np.array([int(document.page_content) for document in found], dtype=np.int64)


class MilvusLite(Untuned):
    """Milvus Lite, HNSW."""

    name, filters = "Milvus Lite", True

    def build(self, work: Workload) -> None:
        """Insert in batches, then index."""
        pymilvus = importlib.import_module("pymilvus")
        self.folder = tempfile.TemporaryDirectory()
        self._client = pymilvus.MilvusClient(str(Path(self.folder.name) / "bench.db"))
        schema = self._client.create_schema(enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=work.vectors.shape[1])
        for share in work.groups:
            schema.add_field(_column(share), pymilvus.DataType.INT64)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 32, "efConstruction": 200})
        self._client.create_collection("bench", schema=schema, index_params=index)
        for at in range(0, len(work.vectors), 2_000):
            rows = range(at, min(at + 2_000, len(work.vectors)))
            self._client.insert(
                "bench",
                [
                    {"id": r, "vector": work.vectors[r], **{_column(s): int(work.groups[s][r]) for s in work.groups}}
                    for r in rows
                ],
            )
        self._client.flush("bench")

    def search(self, query: Floats, k: int, selectivity: float) -> Found:
        """Search with a filter expression."""
        narrowed = f"{_column(selectivity)} == 0" if selectivity < 1 else ""
        found = self._client.search("bench", [query], limit=k, filter=narrowed, search_params={"params": {"ef": 128}})
        return np.array([hit["id"] for hit in found[0]], dtype=np.int64)


ENGINES: dict[str, Callable[[], Engine]] = {
    "clinrag-flat": lambda: Clinrag("flat"),
    "clinrag-codes": lambda: Clinrag("codes"),
    "clinrag-short": lambda: Clinrag("short"),
    "faiss-hnsw": FaissHnsw,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "chroma": Chroma,
    "lancedb": Lance,
    "qdrant": QdrantLocal,
    "langchain-faiss": LangChainFaiss,
    "milvus-lite": MilvusLite,
}
"""Every engine by the name that ``--engines`` takes."""


def _column(selectivity: float) -> str:
    return f"g{round(1 / selectivity)}"
