"""The truth against itself, against what was acknowledged, and against every derived file, both ways."""

from __future__ import annotations

from pathlib import Path

from indexer.errors import DamagedError
from indexer.records import EncoderSpec
from indexer.store.cipher import RowCipher, use_cipher
from indexer.store.snapshots import DERIVED, Snapshots
from indexer.store.soundness import RESTORE, derived_findings, truth_findings
from indexer.store.sqlite import open_engine, read_transaction
from indexer.store.stored import Finding
from indexer.store.witness import Witness


def verify(
    path: Path, spec: EncoderSpec, collection_id: str, witness: Witness, cipher: RowCipher | None = None
) -> list[Finding]:
    """Return everything that is not as it should be; empty = all is well. Reads all of it, writes nothing."""
    acknowledged = witness.read()
    generations = Snapshots(path.parent / DERIVED).paths()
    # Connections of its own: nothing that is checked comes from another's page cache.
    engine = open_engine(path)
    use_cipher(engine, cipher)
    if cipher is not None:
        cipher.keyring.refresh()
    try:
        with read_transaction(engine) as connection:
            lost = witness.problem(acknowledged, connection)
            findings = [] if lost is None else [Finding("truth", lost, RESTORE)]
            findings += truth_findings(connection, spec)
            findings += derived_findings(connection, generations, spec, collection_id)
    except DamagedError as exc:
        return [Finding("truth", f"cannot be read to its end: {str(exc).partition(';')[0]}", RESTORE)]
    finally:
        engine.dispose()
    return findings
