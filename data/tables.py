"""Parquet files as bytes: written with checksums, read whole."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from data.sealing import seal_parquet, unseal_parquet
from data.storage import reason_of

if TYPE_CHECKING:
    import pyarrow as pa


def to_parquet(table: pa.Table) -> bytes:
    """A parquet file with checksums, of its pages and of the whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    kinds = pa.string(), pa.large_string()
    text = [field.name for field in table.schema if field.type in kinds]
    pq.write_table(table, sink, use_dictionary=text, write_page_checksum=True)
    return seal_parquet(sink.getvalue())


def from_parquet(content: bytes) -> pa.Table:
    """A parquet file's content; one that somebody else wrote may have no checksums.

    Raises:
        ValueError: it is damaged; one line says how.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bare = unseal_parquet(content)
    try:
        # In this thread alone, which is not the default: a thread of Arrow's that lets go of its
        # piece of the content while Python exits aborts the process.
        source = io.BytesIO(bare)
        file = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        table = file.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(reason_of(error)) from None
    return table
