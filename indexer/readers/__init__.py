"""What can be read, and what is wrong with it: files and records in, notes or named errors out.

`read_sources` streams every format from paths, recognised by content; `parse_record` checks one JSON note.
"""

from indexer.readers.record import RecordError, parse_record
from indexer.readers.sources import WithoutNotes, read_sources

__all__ = ["RecordError", "WithoutNotes", "parse_record", "read_sources"]
